package testnode

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
)

// nodeName is the same for every node: each has an API server of its own.
const nodeName = "testnode"

const kubernetesDir = "/etc/kubernetes"

// criSocket is where the kubelet finds the CRI runtime.
func criSocket(o Options) string {
	if o.CRI == "cri-o" {
		return crioSocket
	}
	return "unix:///run/containerd/containerd.sock"
}

// kubeletConfig renders the KubeletConfiguration. Intervals are short where
// that changes nothing but the time a test waits. The reservations are odd, so
// that allocatable and capacity cannot be mistaken for each other.
func kubeletConfig(o Options) ([]byte, error) {
	config := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": kubernetesDir + "/ca.crt"},
		},
		"authorization": map[string]any{"mode": "Webhook"},
		// Its own self-signed certificate would take seconds to make.
		"tlsCertFile":            kubernetesDir + "/kubelet.crt",
		"tlsPrivateKeyFile":      kubernetesDir + "/kubelet.key",
		"cgroupDriver":           o.CgroupDriver,
		"cgroupRoot":             o.CgroupRoot,
		"cgroupsPerQOS":          true,
		"enforceNodeAllocatable": []any{"pods"},
		"systemReserved":         map[string]any{"memory": "100Mi"},
		"kubeReserved":           map[string]any{"memory": "51Mi"},
		// A container with a limit of 40m would take half a minute to start.
		"cpuCFSQuota":         false,
		"failSwapOn":          false,
		"staticPodPath":       kubernetesDir + "/manifests",
		"resolvConf":          "/etc/resolv.conf",
		"clusterDomain":       "cluster.local",
		"maxPods":             600,
		"serializeImagePulls": false,
		"fileCheckFrequency":  "5s",
		// 2m is too short where many pods start at once on an emulated processor.
		"runtimeRequestTimeout":     "10m",
		"nodeStatusUpdateFrequency": "5s",
		"nodeStatusReportFrequency": "10s",
		// Images cannot be pulled again: never collect them.
		"imageGCHighThresholdPercent": 100,
	}
	if minor(o.Kubernetes) >= 27 { // a flag before
		config["containerRuntimeEndpoint"] = criSocket(o)
	}
	if len(o.FeatureGates) > 0 {
		gates := make(map[string]any, len(o.FeatureGates))
		for name, on := range o.FeatureGates {
			gates[name] = on
		}
		config["featureGates"] = gates
	}
	data, err := json.MarshalIndent(merged(config, o.KubeletConfig), "", "  ")
	if err != nil {
		return nil, fmt.Errorf("render the kubelet's configuration: %w", err)
	}
	return data, nil
}

// merged lays over onto base: objects are merged, all else is replaced.
func merged(base, over map[string]any) map[string]any {
	result := maps.Clone(base)
	for key, value := range over {
		below, isObject := result[key].(map[string]any)
		if above, ok := value.(map[string]any); ok && isObject {
			value = merged(below, above)
		}
		result[key] = value
	}
	return result
}

// kubeletFlags are what the configuration file does not hold.
func kubeletFlags(o Options) []string {
	flags := []string{
		"--config=" + kubernetesDir + "/kubelet.json",
		"--kubeconfig=" + kubernetesDir + "/kubeconfig",
		"--hostname-override=" + nodeName,
		"--node-ip=" + guestAddress,
		// At its default of 10s statistics take a tenth of an emulated processor.
		"--housekeeping-interval=60s",
	}
	switch version := minor(o.Kubernetes); {
	case version < 24: // dockershim was the default
		flags = append(flags, "--container-runtime=remote", "--container-runtime-endpoint="+criSocket(o))
	case version < 27:
		flags = append(flags, "--container-runtime-endpoint="+criSocket(o))
	}
	return flags
}

func kubeletUnit(o Options) string {
	var before string
	if o.CgroupRoot != "/" {
		before = "ExecStartPre=" + guestBinary + " -make-cgroup-root=" + o.CgroupRoot + "\n"
	}
	return `[Unit]
Description=kubelet
After=` + imagesService + `

[Service]
` + before + `ExecStart=/opt/kubernetes/kubelet ` + strings.Join(kubeletFlags(o), " ") + `
# A file, so that it can be read from a node that is in trouble.
StandardOutput=append:` + kubeletLog + `
StandardError=inherit
Restart=always
RestartSec=1
`
}

const kubeletLog = "/var/log/kubelet.log"
