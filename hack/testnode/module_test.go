package testnode

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWrapperModule(t *testing.T) {
	var upstream upstreamModule
	err := json.Unmarshal([]byte(`{
		"Require": [{"Path": "k8s.io/api", "Version": "v0.0.0"}, {"Path": "example.org/old", "Version": "v1.0.0"}],
		"Replace": [
			{"Old": {"Path": "k8s.io/sample-controller"}, "New": {"Path": "./staging/src/k8s.io/sample-controller"}},
			{"Old": {"Path": "k8s.io/api"}, "New": {"Path": "./staging/src/k8s.io/api"}},
			{"Old": {"Path": "example.org/old"}, "New": {"Path": "example.org/new", "Version": "v1.2.3"}}
		]}`), &upstream)
	if err != nil {
		t.Fatal(err)
	}
	const want = `// Kubernetes 1.22.17 for the test node. Made by: testnode module 1.22.17
module github.com/memqos/memqos/hack/kubernetes/v1.22.17

go 1.26.0

require k8s.io/kubernetes v1.22.17

tool (
	k8s.io/kubernetes/cmd/kubelet
)

replace (
	example.org/old => example.org/new v1.2.3
	k8s.io/api => k8s.io/api v0.22.17
)
`
	if diff := cmp.Diff(want, string(wrapperModule("1.22.17", upstream))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
