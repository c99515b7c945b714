// Package config owns the configuration of memqos: the versioned type
// MemoryQoSConfiguration, its defaults, its strict decoding and validation, and
// its changes while the agent runs.
//
// Field names follow the kubelet's KubeletConfiguration (kubelet.config.k8s.io)
// wherever it has the same setting.
package config
