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
	"time"

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
	Events []event
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
	Usage int64
	Marks []mark
	Text  string // for who cannot see it
	scale memory.Value
}

// mark is where a value is. All of it is inside the bar.
type mark struct {
	File memory.File
	At   int64
	Text string
}

// markWidth is in thousandths of the scale too.
const markWidth = 5

type recent struct {
	status.Change
	Where string
}

// event is a kill, or that memory.high of a container is raised. That the agent stands
// down for a kubelet, or refuses a configuration, is a notice: a status has no time of it.
type event struct {
	Time        time.Time
	Where, What string
}

const recentShown = 20

func newView(s *status.NodeStatus) view {
	v := view{NodeStatus: s, Rail: s.Rail()}
	counts := map[status.Verdict]int{}
	for i := range s.Cgroups {
		c := &s.Cgroups[i]
		counts[c.Verdict]++
		var scale memory.Value
		if n := len(v.Pods); n > 0 && c.Level == qos.LevelContainer {
			scale = v.Pods[n-1].Bar.scale
		}
		r := newRow(c, scale)
		for _, change := range c.Changes {
			v.Recent = append(v.Recent, recent{change, r.full()})
		}
		if x := c.Relaxed; x != nil {
			v.Events = append(v.Events, event{x.Since, r.full(), fmt.Sprintf("memory.high is raised from %s by the stall guard. %s", x.Planned.Human(), x.Why)})
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
	for _, k := range s.Kills {
		v.Events = append(v.Events, event{k.Time, k.Namespace + "/" + k.Pod + " " + k.Container, fmt.Sprintf("killed for memory (%s): %s", k.Cause, k.Message)})
	}
	slices.SortStableFunc(v.Events, func(a, b event) int { return b.Time.Compare(a.Time) })
	slices.SortStableFunc(v.Recent, func(a, b recent) int { return b.Time.Compare(a.Time) })
	v.Recent = v.Recent[:min(len(v.Recent), recentShown)]
	return v
}

// newRow is a row of a cgroup, in a pod of which the bar has this scale.
func newRow(c *status.Cgroup, pod memory.Value) row {
	r := row{Cgroup: c, Name: c.Container, Bar: newBar(c, pod)}
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

// newBar draws a cgroup. What has no limit of its own is drawn by the scale of its pod:
// alone it would fill its bar.
func newBar(c *status.Cgroup, pod memory.Value) bar {
	usage := used(c)
	b := bar{scale: max(usage, 1)}
	limited := false
	for file, v := range c.Actual {
		if v != memory.Unlimited {
			b.scale = max(b.scale, v)
			limited = limited || file == memory.High || file == memory.Max
		}
	}
	if !limited {
		b.scale = max(b.scale, pod)
	}
	part := func(v memory.Value) int64 { return int64(float64(v) / float64(b.scale) * 1000) }
	b.Usage = part(usage)
	words := []string{"uses " + Size(usage)}
	for _, file := range memory.Files {
		v, read := c.Actual[file]
		if !read || v == memory.Unlimited || (v == 0 && (file == memory.Min || file == memory.Low)) {
			continue
		}
		m := mark{file, min(part(v), 1000-markWidth), string(file) + " " + Size(v)}
		b.Marks = append(b.Marks, m)
		words = append(words, m.Text)
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
