// Package qos decides: from pods, a node and a configuration it computes the
// plan, that is which value the kubelet's MemoryQoS of the emulated release
// would have put into which memory.* file, and why. It is pure: it touches no
// file, no clock and no network.
//
// The sources are KEP-2570 and, in k8s.io/kubernetes, for containers
// pkg/kubelet/kuberuntime/kuberuntime_container_linux.go
// (generateLinuxContainerResources), for pods pkg/kubelet/cm/helpers_linux.go
// (ResourceConfigForPod), for kubepods and its QoS classes
// pkg/kubelet/cm/qos_container_manager_linux.go (setMemoryQoS).
package qos
