package testnode

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDecode(t *testing.T) {
	objects, err := decode([]byte(`# only a comment
---
apiVersion: v1
kind: Pod
metadata: {name: a}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: b}}
- {apiVersion: v1, kind: Namespace, metadata: {name: c}}
---
`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, object := range objects {
		got = append(got, object.GetKind()+" "+object.GetName())
	}
	if diff := cmp.Diff([]string{"Pod a", "Pod b", "Namespace c"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := decode([]byte("kind: [")); err == nil {
		t.Error("accepted what is no YAML")
	}
}
