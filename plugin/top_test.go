package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
	"github.com/memqos/memqos/status"
)

// run runs a command line against an API server, in the namespace shop.
func run(ctx context.Context, t *testing.T, server http.Handler, out, errOut io.Writer, args ...string) error {
	t.Helper()
	s := httptest.NewServer(server)
	defer s.Close()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, fmt.Appendf(nil, `
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, namespace: shop}}]
clusters: [{name: c, cluster: {server: "%s"}}]
`, s.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := New("kubectl-memqos", "test")
	cmd.SetArgs(append(args, "--kubeconfig", kubeconfig))
	cmd.SetOut(out)
	cmd.SetErr(errOut)
	return cmd.ExecuteContext(ctx)
}

// terminal is a pseudo terminal. What is written to it is had of read, once the first is
// closed.
func terminal(t *testing.T) (tty *os.File, read func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	text := make(chan string, 1)
	go func() {
		var b bytes.Buffer
		_, _ = io.Copy(&b, master) // ends with EIO when nobody has the terminal open
		text <- b.String()
	}()
	return tty, func() string {
		_ = tty.Close()
		return strings.ReplaceAll(<-text, "\r\n", "\n")
	}
}

// Of each look the screen has what it showed and, beneath, who did not answer; an error
// that may pass ends nothing.
func TestWatch(t *testing.T) {
	t.Setenv("NO_COLOR", "1")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a := &api{nodes: 2}
	var looks atomic.Int32
	server := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/api/v1/namespaces/memqos/pods":
			switch looks.Add(1) {
			case 1:
				http.Error(w, "etcd is away", http.StatusInternalServerError)
				return
			case 3:
				w.Header().Set("Content-Type", "application/json")
				_ = json.NewEncoder(w).Encode(corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}})
				return
			case 4:
				http.Error(w, "no roles yet", http.StatusForbidden)
				return
			case 6:
				cancel()
			}
		case strings.Contains(r.URL.Path, "memqos-node-001"):
			http.Error(w, "nobody there", http.StatusBadGateway)
			return
		}
		a.ServeHTTP(w, r)
	})
	tty, read := terminal(t)
	if err := run(ctx, t, server, tty, tty, "top", "--watch", "--interval", "1ms"); err != nil {
		t.Errorf("the end of a watch is an error: %v", err)
	}
	const look = `POD            CONTAINER   USAGE   MIN    HIGH       MAX                              VERDICT
web-node-000   app         96Mi    64Mi   124516Ki   128Mi   [##########|####...>.]   Fulfilled
node node-001: no answer: an error on the server ("nobody there") has prevented the request from succeeding (get pods http:memqos-node-001:9812)
`
	want := []string{
		"",
		`memqos: list the agents' pods in namespace memqos: an error on the server ("etcd is away") has prevented the request from succeeding (get pods)
`,
		look,
		`memqos: there are no agents: no pod with app.kubernetes.io/name=memqos,app.kubernetes.io/component=agent in namespace memqos (--agent-namespace, --agent-selector)
`,
		`memqos: list the agents' pods in namespace memqos: no roles yet (get pods)
`,
		look,
	}
	if diff := cmp.Diff(want, strings.Split(read(), "\x1b[H\x1b[2J")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// What no second look can mend is said at once.
func TestTopRefuses(t *testing.T) {
	forbid := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not for you", http.StatusForbidden) })
	for _, tc := range []struct {
		args, want string
	}{
		{"--sort-by size", "--sort-by size: want verdict, usage, full or name"},
		{"-l a=b=c", "--selector a=b=c: "},
		{"--interval 0s", "--interval 0s: want a time above 0"},
		{"-o xml", "-o xml: want one of wide, json, yaml"},
		{"-A", "not for you"},
	} {
		var out, errOut bytes.Buffer
		err := run(t.Context(), t, forbid, &out, &errOut, append([]string{"top", "--watch"}, strings.Fields(tc.args)...)...)
		if err == nil || !strings.Contains(err.Error(), tc.want) || out.Len() > 0 {
			t.Errorf("%s: error %v, want one with %q; printed %q", tc.args, err, tc.want, out.String())
		}
	}
}

// A terminal has colours, unless somebody wants none; a file or a pipe never has.
func TestColours(t *testing.T) {
	for _, tc := range []struct {
		name, noColor, term string
		want                bool
	}{
		{"a terminal", "", "xterm", true},
		{"NO_COLOR", "1", "xterm", false},
		{"a terminal that has none", "", "dumb", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("NO_COLOR", tc.noColor)
			t.Setenv("TERM", tc.term)
			tty, read := terminal(t)
			if err := run(t.Context(), t, &api{nodes: 1}, tty, tty, "top"); err != nil {
				t.Fatal(err)
			}
			if got := strings.Contains(read(), "\x1b[32mFulfilled\x1b[0m"); got != tc.want {
				t.Errorf("green: %v, want %v", got, tc.want)
			}
			var piped bytes.Buffer
			if err := run(t.Context(), t, &api{nodes: 1}, &piped, &piped, "top"); err != nil {
				t.Fatal(err)
			}
			if s := piped.String(); strings.Contains(s, "\x1b") || !strings.Contains(s, "Fulfilled") {
				t.Errorf("piped: %q", s)
			}
		})
	}
}

func TestSortLines(t *testing.T) {
	l := func(pod string, v status.Verdict, usage uint64, high memory.Value) line {
		return line{"n", &status.Cgroup{Namespace: "shop", Pod: pod, Verdict: v, UsageBytes: usage, Actual: memory.Values{memory.High: high, memory.Max: 100}}}
	}
	lines := []line{
		l("d", status.Fulfilled, 40, 80),               // half full
		l("c", status.Fulfilled, 90, memory.Unlimited), // 90 % of memory.max
		l("b", status.Relaxed, 10, memory.Unlimited),
		l("a", status.Drifted, 30, memory.Unlimited),
		l("e", status.Fulfilled, 90, memory.Unlimited),
	}
	for by, want := range map[string]string{"verdict": "a b c e d", "usage": "c e d a b", "full": "c e d a b", "name": "a b c d e"} {
		sorted := slices.Clone(lines)
		sortLines(sorted, by)
		var got []string
		for _, x := range sorted {
			got = append(got, x.Pod)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("by %s: %v, want %s", by, got, want)
		}
	}
}

// Which pods are shown, in which form.
func TestTopSelects(t *testing.T) {
	other := &corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Items: []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-node-001"}}}}
	a := &api{
		nodes:   3,
		objects: map[string]runtime.Object{"/api/v1/namespaces/shop/pods?labelSelector=app%3Dweb": other, "/api/v1/pods?labelSelector=app%3Dweb": other},
		status: func(node string) *status.NodeStatus {
			s := nodeStatus(node)
			values := memory.Values{memory.High: memory.Unlimited, memory.Max: memory.Unlimited}
			s.Cgroups = append(
				s.Cgroups,
				status.Cgroup{Level: qos.LevelContainer, Namespace: "shop", Pod: "web-" + node, Container: status.Sandbox, Verdict: status.Fulfilled, Actual: values},
				status.Cgroup{Level: qos.LevelContainer, Namespace: "bank", Pod: "vault-" + node, Container: "app", Verdict: status.Drifted, Actual: values, UsageBytes: 1 << 20},
			)
			return s
		},
	}
	server := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "memqos-node-000") {
			http.Error(w, "", http.StatusBadGateway)
			return
		}
		a.ServeHTTP(w, r)
	})
	for _, tc := range []struct {
		args string
		want []string
	}{
		{"", []string{"shop/web-node-001/app", "shop/web-node-002/app"}},
		{"-n bank", []string{"bank/vault-node-001/app", "bank/vault-node-002/app"}},
		{"-A", []string{"bank/vault-node-001/app", "bank/vault-node-002/app", "shop/web-node-001/app", "shop/web-node-002/app"}},
		{"-l app=web", []string{"shop/web-node-001/app"}},
		{"-A -l app=web", []string{"shop/web-node-001/app"}},
	} {
		args := append([]string{"top"}, strings.Fields(tc.args)...)
		var out, errOut bytes.Buffer
		if err := run(t.Context(), t, server, &out, &errOut, append(args, "-o", "json")...); err != nil {
			t.Fatal(err)
		}
		var list List
		if err := json.Unmarshal(out.Bytes(), &list); err != nil {
			t.Fatalf("%s: %v in\n%s", tc.args, err, out.String())
		}
		var got []string
		for _, s := range list.Items {
			for _, c := range s.Cgroups {
				if c.Level == qos.LevelContainer && c.Container != status.Sandbox {
					got = append(got, c.Namespace+"/"+c.Pod+"/"+c.Container)
				}
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("top %s -o json: -want +got:\n%s", tc.args, diff)
		}
		if len(list.Unanswered) != 1 || !strings.HasPrefix(list.Unanswered["node-000"], "no answer: ") {
			t.Errorf("top %s -o json: unanswered: %v, want node-000", tc.args, list.Unanswered)
		}
		// The table has the same, and the node that did not answer apart.
		out.Reset()
		if err := run(t.Context(), t, server, &out, &errOut, args...); err != nil {
			t.Fatal(err)
		}
		if lines := strings.Count(out.String(), "\n"); lines != 1+len(tc.want) || !strings.HasPrefix(errOut.String(), "node node-000: no answer") {
			t.Errorf("top %s: %d lines, want a head and %d; beside it %q\n%s", tc.args, lines, len(tc.want), errOut.String(), out.String())
		}
	}
}
