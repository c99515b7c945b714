package page

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed" // the page
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
	"github.com/memqos/memqos/status"
)

//go:embed page.html
var source string

// policy lets the page run what is in it and nothing else: no script or style of a
// pod's name, and no request but to where the page came from.
var policy = fmt.Sprintf("default-src 'none'; style-src '%s'; script-src '%s'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	hashOf("style"), hashOf("script"))

func hashOf(element string) string {
	m := regexp.MustCompile(`(?s)<` + element + `>(.*?)</` + element + `>`).FindStringSubmatch(source)
	sum := sha256.Sum256([]byte(m[1]))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// Handler serves the page at / and the JSON at /status, both for one pod if the query
// names its namespace and pod. It answers GET and HEAD alone. loopback says that it is
// reached only from the same machine, such as by kubectl port-forward: then a Host
// that is a name other than localhost is a browser that was led here (DNS rebinding).
func Handler(ask func(ctx context.Context, namespace, pod string) (*status.NodeStatus, error), loopback bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "read only: GET or HEAD", http.StatusMethodNotAllowed)
			return
		case r.URL.Path != "/" && r.URL.Path != "/status":
			http.NotFound(w, r)
			return
		case loopback && !isLocal(r.Host):
			http.Error(w, "want localhost for a host", http.StatusMisdirectedRequest)
			return
		}
		s, err := ask(r.Context(), r.URL.Query().Get("namespace"), r.URL.Query().Get("pod"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		var b bytes.Buffer
		if r.URL.Path == "/status" {
			h.Set("Content-Type", "application/json")
			err = json.NewEncoder(&b).Encode(s)
		} else {
			h.Set("Content-Type", "text/html; charset=utf-8")
			b.WriteString(render(s))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(b.Bytes()) // who asked is gone if it fails
	})
}

func isLocal(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return host == "localhost" || net.ParseIP(strings.Trim(host, "[]")) != nil
}

// view is what the page shows.
type view struct {
	*status.NodeStatus
	Rail   status.Rail
	Above  []row // kubepods and the classes
	Pods   []pod
	Counts []count
	Recent []recent
}

type count struct {
	Verdict status.Verdict
	N       int
}

// pod is a pod with its containers.
type pod struct {
	row
	Containers []row
}

// row is a cgroup.
type row struct {
	*status.Cgroup
	Name  string
	Files []cell
	Bar   bar
}

// cell is a file of a cgroup.
type cell struct {
	File      memory.File
	Want, Has string
	Exact     string // what the file holds
	Differs   bool
	Reason    string
}

// bar is usage against the values, in thousandths of the scale.
type bar struct {
	Usage, Min, High int64
	HasMin, HasHigh  bool
	Text             string // for who cannot see it
}

type recent struct {
	status.Change
	Where string
}

const recentShown = 20

func newView(s *status.NodeStatus) view {
	v := view{NodeStatus: s, Rail: s.Rail()}
	counts := map[status.Verdict]int{}
	for i := range s.Cgroups {
		c := &s.Cgroups[i]
		counts[c.Verdict]++
		r := newRow(c)
		for _, change := range c.Changes {
			v.Recent = append(v.Recent, recent{change, r.full()})
		}
		switch {
		case c.Level == qos.LevelNode || c.Level == qos.LevelQOS:
			v.Above = append(v.Above, r)
		case c.Level == qos.LevelPod || len(v.Pods) == 0:
			v.Pods = append(v.Pods, pod{row: r})
		default:
			p := &v.Pods[len(v.Pods)-1]
			p.Containers = append(p.Containers, r)
			if c.Verdict.Severity() < p.Verdict.Severity() && c.Verdict != status.Unknown {
				worse := *p.Cgroup
				worse.Verdict = c.Verdict
				p.Cgroup = &worse // the summary of the pod
			}
		}
	}
	for _, verdict := range []status.Verdict{status.Drifted, status.Relaxed, status.Pending, status.Unknown, status.Fulfilled} {
		if counts[verdict] > 0 {
			v.Counts = append(v.Counts, count{verdict, counts[verdict]})
		}
	}
	slices.SortStableFunc(v.Pods, func(a, b pod) int { return a.Verdict.Severity() - b.Verdict.Severity() })
	slices.SortStableFunc(v.Recent, func(a, b recent) int { return b.Time.Compare(a.Time) })
	v.Recent = v.Recent[:min(len(v.Recent), recentShown)]
	return v
}

func newRow(c *status.Cgroup) row {
	r := row{Cgroup: c, Name: c.Container, Bar: newBar(c)}
	switch {
	case c.Level == qos.LevelNode:
		r.Name = "kubepods"
	case c.Level == qos.LevelQOS:
		r.Name = string(c.QOSClass)
	case c.Level == qos.LevelPod && c.Pod != "":
		r.Name = c.Namespace + "/" + c.Pod
	case r.Name == "":
		r.Name = "(" + c.Cgroup[strings.LastIndexByte(c.Cgroup, '/')+1:] + ")"
	}
	for _, file := range memory.Files {
		want, wanted := c.Wanted[file]
		has, read := c.Actual[file]
		x := cell{File: file, Want: "-", Has: "-", Reason: c.Reason[file], Differs: wanted && read && want != has}
		if wanted {
			x.Want = want.Human()
		}
		if read {
			x.Has, x.Exact = has.Human(), has.String()
		}
		r.Files = append(r.Files, x)
	}
	return r
}

func (r *row) full() string {
	if r.Level == qos.LevelContainer {
		return r.Namespace + "/" + r.Pod + " " + r.Name
	}
	return r.Name
}

func newBar(c *status.Cgroup) bar {
	usage := used(c)
	least, high, most := max(c.Actual[memory.Min], c.Actual[memory.Low]), c.Actual[memory.High], c.Actual[memory.Max]
	scale := max(usage, 1)
	for _, v := range []memory.Value{least, high, most} {
		if v != memory.Unlimited {
			scale = max(scale, v)
		}
	}
	part := func(v memory.Value) int64 { return int64(float64(v) / float64(scale) * 1000) }
	b := bar{Usage: part(usage)}
	words := []string{"uses " + Size(usage)}
	if least > 0 && least != memory.Unlimited {
		b.Min, b.HasMin = part(least), true
		words = append(words, "protected "+Size(least))
	}
	if _, read := c.Actual[memory.High]; read && high != memory.Unlimited {
		b.High, b.HasHigh = part(high), true
		words = append(words, "memory.high "+Size(high))
	}
	if _, read := c.Actual[memory.Max]; read && most != memory.Unlimited {
		words = append(words, "memory.max "+Size(most))
	}
	b.Text = strings.Join(words, ", ")
	return b
}

// Size is an amount for people, to three figures.
func Size(v memory.Value) string {
	if v == memory.Unlimited {
		return "max"
	}
	f := float64(v)
	for _, unit := range []string{"", "Ki", "Mi", "Gi"} {
		if f < 1024 {
			if unit == "" || f >= 100 {
				return fmt.Sprintf("%.0f%s", f, unit)
			}
			return fmt.Sprintf("%.3g%s", f, unit)
		}
		f /= 1024
	}
	return fmt.Sprintf("%.3gTi", f)
}
