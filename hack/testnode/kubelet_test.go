package testnode

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestKubeletConfig(t *testing.T) {
	for _, test := range []struct {
		name    string
		options Options
		want    map[string]any // fields to look at; nil: must not be there
		flag    string         // must be given, "" for none
	}{
		{
			name: "default",
			want: map[string]any{
				"cgroupDriver": "systemd", "cgroupRoot": "/", "featureGates": nil,
				"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
			},
		},
		{
			name:    "1.26 takes the endpoint as a flag",
			options: Options{Kubernetes: "1.26.3"},
			want:    map[string]any{"containerRuntimeEndpoint": nil},
			flag:    "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
		},
		{
			name:    "1.22 has to be told that the runtime is remote",
			options: Options{Kubernetes: "1.22.17"},
			want:    map[string]any{"containerRuntimeEndpoint": nil},
			flag:    "--container-runtime=remote",
		},
		{
			name:    "CRI-O",
			options: Options{CRI: "cri-o"},
			want:    map[string]any{"containerRuntimeEndpoint": "unix:///run/crio/crio.sock"},
		},
		{
			name: "merged",
			options: Options{
				CgroupDriver:  "cgroupfs",
				CgroupRoot:    "/kubelet",
				FeatureGates:  map[string]bool{"MemoryQoS": true},
				KubeletConfig: map[string]any{"memoryThrottlingFactor": 0.8, "kubeReserved": map[string]any{"cpu": "100m"}, "maxPods": 10},
			},
			want: map[string]any{
				"cgroupDriver": "cgroupfs", "cgroupRoot": "/kubelet", "maxPods": 10.0, "memoryThrottlingFactor": 0.8,
				"featureGates": map[string]any{"MemoryQoS": true},
				"kubeReserved": map[string]any{"cpu": "100m", "memory": "51Mi"},
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			o, err := test.options.withDefaults()
			if err != nil {
				t.Fatal(err)
			}
			data, err := kubeletConfig(o)
			if err != nil {
				t.Fatal(err)
			}
			var config map[string]any
			if err := json.Unmarshal(data, &config); err != nil {
				t.Fatal(err)
			}
			for field, want := range test.want {
				if diff := cmp.Diff(want, config[field]); diff != "" {
					t.Errorf("%s (-want +got):\n%s", field, diff)
				}
			}
			if flags := kubeletFlags(o); test.flag != "" && !slices.Contains(flags, test.flag) {
				t.Errorf("flags %q lack %s", flags, test.flag)
			}
		})
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{CgroupDriver: "none"}, {Runtime: "rkt"}, {Kubernetes: "latest"}, {APIServer: "27"}} {
		if _, err := o.withDefaults(); err == nil {
			t.Errorf("accepted %+v", o)
		}
	}
	o, err := Options{Debian: "trixie", Kubernetes: "1.22.17", APIServer: "1.27.4"}.withDefaults()
	if err != nil || o.CPUs != 1 || o.APIServer != "1.27.4" {
		t.Errorf("got %+v, %v", o, err)
	}
}
