//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/memqos/memqos/hack/testnode"
)

// right is a verb on a resource: "list pods", "create events.k8s.io/events".
type right struct{ verb, resource string }

// testRights: by the API server's own log, the agent was refused nothing, it asked
// for no more than deploy/rbac.yaml gives it, and it used all of that, but for
// the rules whose comment says "only where" or "only when".
func testRights(t *testing.T, node *testnode.Node) {
	data, err := os.ReadFile(root + "/deploy/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	given, rare := rightsOf(t, string(data))
	log, err := node.AuditLog()
	if err != nil {
		t.Fatal(err)
	}
	used := map[right]int{}
	var streamed []right
	events := json.NewDecoder(bytes.NewReader(log))
	for {
		var event struct {
			Verb       string
			RequestURI string
			User       struct{ Username string }
			ObjectRef  struct{ APIGroup, Resource, Subresource string }

			ResponseStatus struct{ Code int }
			Annotations    map[string]string
		}
		err := events.Decode(&event)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) { // the last line may be half written
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if event.User.Username != "system:serviceaccount:memqos:memqos" {
			continue
		}
		r := right{event.Verb, resourceName(event.ObjectRef.APIGroup, event.ObjectRef.Resource, event.ObjectRef.Subresource)}
		used[r]++
		if strings.Contains(event.RequestURI, "sendInitialEvents=true") { // a watch that begins with the list
			streamed = append(streamed, right{"list", r.resource})
		}
		if event.ResponseStatus.Code == 403 || event.Annotations["authorization.k8s.io/decision"] == "forbid" {
			t.Errorf("%s was refused: %s", r, event.RequestURI)
		}
		if !slices.Contains(given, r) {
			t.Errorf("%s is not among the rules: %s", r, event.RequestURI)
		}
	}
	for _, r := range given {
		if used[r] == 0 && !slices.Contains(rare, r) && !slices.Contains(streamed, r) {
			t.Errorf("%s is given and was not used; if that is as it should be, the comment above its rule in deploy/rbac.yaml says \"only where\" or \"only when\"", r)
		}
	}
	t.Logf("requests of the agent: %v", used)
}

func (r right) String() string { return r.verb + " " + r.resource }

func resourceName(group, resource, subresource string) string {
	if group != "" {
		resource = group + "/" + resource
	}
	if subresource != "" {
		resource += "/" + subresource
	}
	return resource
}

// rightsOf reads the rules of roles. rare are those that a comment says are not
// used everywhere.
func rightsOf(t *testing.T, manifest string) (given, rare []right) {
	t.Helper()
	for doc := range strings.SplitSeq(manifest, "\n---\n") {
		var role rbacv1.ClusterRole
		if err := yaml.Unmarshal([]byte(doc), &role); err != nil {
			t.Fatal(err)
		}
		_, rules, ok := strings.Cut(doc, "\nrules:\n")
		if !ok {
			continue
		}
		comments := strings.SplitAfter(rules, "\n- ")
		for i, rule := range role.Rules {
			comment := comments[i][strings.LastIndex(comments[i], "]\n")+1:] // beneath the rule before
			var rights []right
			for _, verb := range rule.Verbs {
				for _, group := range rule.APIGroups {
					for _, resource := range rule.Resources {
						rights = append(rights, right{verb, resourceName(group, resource, "")})
					}
				}
			}
			if len(rights) == 0 || !strings.HasPrefix(strings.TrimSpace(comment), "#") {
				t.Fatalf("rule %d of %s: want rights, and a comment on what they are for", i, role.Name)
			}
			given = append(given, rights...)
			if strings.Contains(comment, "only where") || strings.Contains(comment, "only when") {
				rare = append(rare, rights...)
			}
		}
	}
	if len(given) == 0 {
		t.Fatal("deploy/rbac.yaml gives no rights")
	}
	return given, rare
}
