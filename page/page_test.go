package page

import (
	"context"
	"html"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
	"github.com/memqos/memqos/status"
)

const hostile = `"><script>alert(1)</script><img src=x onerror=alert(1)>`

func get(t *testing.T, method, url, host string, loopback bool) *httptest.ResponseRecorder {
	t.Helper()
	s := &status.NodeStatus{Node: hostile, Cgroups: []status.Cgroup{{
		Level: qos.LevelPod, Cgroup: hostile, Namespace: hostile, Pod: hostile, Verdict: status.Fulfilled,
		Actual: memory.Values{memory.High: 4096}, Reason: map[memory.File]string{memory.High: hostile},
	}}}
	r := httptest.NewRequest(method, url, nil)
	r.Host = host
	w := httptest.NewRecorder()
	Handler(func(context.Context, string, string) (*status.NodeStatus, error) { return s, nil }, loopback).ServeHTTP(w, r)
	return w
}

// What comes of a pod is text, and the policy names the page's own script and style
// as they are sent.
func TestHostileNames(t *testing.T) {
	w := get(t, "GET", "/", "localhost:9812", true)
	body := w.Body.String()
	if n := strings.Count(body, "<script"); n != 1 || strings.Contains(body, "<img") {
		t.Errorf("%d scripts in\n%s", n, body)
	}
	if !strings.Contains(body, "4Ki") {
		t.Error("the value is not shown")
	}
	for _, element := range []string{"style", "script"} {
		sent := regexp.MustCompile(`(?s)<` + element + `>(.*?)</` + element + `>`).FindStringSubmatch(body)[1]
		kept := regexp.MustCompile(`(?s)<` + element + `>(.*?)</` + element + `>`).FindStringSubmatch(source)[1]
		if sent != kept || !strings.Contains(w.Header().Get("Content-Security-Policy"), hashOf(element)) {
			t.Errorf("the %s that is sent is not that of the policy", element)
		}
	}
}

func TestHandler(t *testing.T) {
	for _, tc := range []struct {
		method, url, host string
		loopback          bool
		want              int
	}{
		{"GET", "/", "localhost", true, 200},
		{"GET", "/status", "127.0.0.1:9812", true, 200},
		{"GET", "/status", "[::1]:9812", true, 200},
		{"HEAD", "/status", "localhost", true, 200},
		{"GET", "/", "evil.example:9812", true, 421},
		{"GET", "/", "api.example", false, 200}, // the API server's proxy hands on its own
		{"POST", "/status", "localhost", true, 405},
		{"GET", "/metrics", "localhost", true, 404},
	} {
		if got := get(t, tc.method, tc.url, tc.host, tc.loopback).Code; got != tc.want {
			t.Errorf("%s %s to %s: %d, want %d", tc.method, tc.url, tc.host, got, tc.want)
		}
	}
}

// Every mark is wholly inside its bar, where its value is, and no bar is full of what
// only has no limit of its own.
func TestBars(t *testing.T) {
	const mi = memory.Value(1 << 20)
	c := func(level qos.Level, name string, usage, least, low, high, most memory.Value) status.Cgroup {
		return status.Cgroup{
			Level: level, Cgroup: name, Namespace: "shop", Pod: "web", Container: name, UsageBytes: uint64(usage),
			Actual: memory.Values{memory.Min: least, memory.Low: low, memory.High: high, memory.Max: most},
		}
	}
	const none = memory.Unlimited
	v := newView(&status.NodeStatus{Cgroups: []status.Cgroup{
		c(qos.LevelNode, "kubepods", 100*mi, 400*mi, 0, none, 1000*mi),
		c(qos.LevelPod, "", 50*mi, 20*mi, 0, none, 200*mi),
		c(qos.LevelContainer, "guaranteed", 50*mi, 200*mi, 0, 0, 200*mi),
		c(qos.LevelContainer, "tiered", 50*mi, 10*mi, 20*mi, 90*mi, 100*mi),
		c(qos.LevelContainer, "over", 100*mi, 0, 0, none, 50*mi), // lowered under its usage
		c(qos.LevelContainer, "besteffort", 50*mi, 0, 0, none, none),
		c(qos.LevelContainer, "(sandbox)", mi, 0, 0, none, none),
		{Level: qos.LevelContainer, Cgroup: "new", Container: "new"},
		c(qos.LevelPod, "", 40*mi, 0, 0, none, none),
		c(qos.LevelContainer, "app", 30*mi, 0, 0, none, none),
		c(qos.LevelContainer, "all protected", 40*mi, none, 0, none, 80*mi),
	}})
	got := []bar{v.Above[0].Bar}
	for _, p := range v.Pods {
		got = append(got, p.Bar)
		for _, r := range p.Containers {
			got = append(got, r.Bar)
		}
	}
	want := []bar{
		{Usage: 100, Marks: []mark{{memory.Min, 400, "memory.min 400Mi"}, {memory.Max, 995, "memory.max 1000Mi"}}, Text: "uses 100Mi, memory.min 400Mi, memory.max 1000Mi"},
		{Usage: 250, Marks: []mark{{memory.Min, 100, "memory.min 20Mi"}, {memory.Max, 995, "memory.max 200Mi"}}, Text: "uses 50Mi, memory.min 20Mi, memory.max 200Mi"},
		{Usage: 250, Marks: []mark{{memory.Min, 995, "memory.min 200Mi"}, {memory.High, 0, "memory.high 0"}, {memory.Max, 995, "memory.max 200Mi"}}, Text: "uses 50Mi, memory.min 200Mi, memory.high 0, memory.max 200Mi"},
		{
			Usage: 500, Marks: []mark{{memory.Min, 100, "memory.min 10Mi"}, {memory.Low, 200, "memory.low 20Mi"}, {memory.High, 900, "memory.high 90Mi"}, {memory.Max, 995, "memory.max 100Mi"}},
			Text: "uses 50Mi, memory.min 10Mi, memory.low 20Mi, memory.high 90Mi, memory.max 100Mi",
		},
		{Usage: 1000, Marks: []mark{{memory.Max, 500, "memory.max 50Mi"}}, Text: "uses 100Mi, memory.max 50Mi"},
		{Usage: 250, Text: "uses 50Mi"},
		{Usage: 5, Text: "uses 1Mi"},
		{Text: "uses 0"},
		{Usage: 1000, Text: "uses 40Mi"},
		{Usage: 750, Text: "uses 30Mi"},
		{Usage: 500, Marks: []mark{{memory.Max, 995, "memory.max 80Mi"}}, Text: "uses 40Mi, memory.max 80Mi"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(bar{}), cmpopts.IgnoreFields(bar{}, "scale")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	// As it is drawn: every mark is a shape of its file, with its value, in the picture.
	drawn := string(svg(got[3]))
	viewBox := regexp.MustCompile(`viewBox="0 0 (\d+) (\d+)"`).FindStringSubmatch(drawn)
	rects := regexp.MustCompile(`<rect class="(\w)" x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)">(?:<title>(.*?)</title>)?`).FindAllStringSubmatch(drawn, -1)
	n := func(s string) int { i, _ := strconv.Atoi(s); return i }
	var shapes []string
	for _, r := range rects {
		shapes = append(shapes, strings.TrimSpace(r[1]+" "+r[6]))
		if n(r[2])+n(r[4]) > n(viewBox[1]) || n(r[3])+n(r[5]) > n(viewBox[2]) {
			t.Errorf("%s is not inside %s", r[0], viewBox[0])
		}
	}
	if diff := cmp.Diff([]string{"t", "u", "m memory.min 10Mi", "l memory.low 20Mi", "h memory.high 90Mi", "x memory.max 100Mi"}, shapes); diff != "" {
		t.Errorf("shapes: -want +got:\n%s", diff)
	}
	for _, f := range memory.Files {
		if !strings.Contains(source, "."+looks[f].class+"{fill:") || !strings.Contains(string(v.main()), string(legend(looks[f].class, string(f)))) {
			t.Errorf("%s has no colour, or is not in the legend", f)
		}
	}
}

var tag = regexp.MustCompile(`(?s)<title>.*?</title>|<[^>]*>`)

// lines is the text of HTML, a line for each line of its source.
func lines(n node) (all []string) {
	for _, line := range strings.Split(html.UnescapeString(tag.ReplaceAllString(string(n), " ")), "\n") {
		if s := strings.Join(strings.Fields(line), " "); s != "" {
			all = append(all, s)
		}
	}
	return all
}

// Pressure is in the line of each cgroup and, with its totals, beneath; a kernel
// without has none.
func TestPressure(t *testing.T) {
	v := newView(&status.NodeStatus{Cgroups: []status.Cgroup{
		{Level: qos.LevelNode, Cgroup: "kubepods", Pressure: &status.Pressure{SomeAvg10: 0.05, FullAvg10: 0}},
		{Level: qos.LevelPod, Cgroup: "a", Namespace: "shop", Pod: "web", Pressure: &status.Pressure{SomeAvg10: 12.34, SomeTotalUsec: 5900000, FullAvg10: 1.5, FullTotalUsec: 4200000}},
		{Level: qos.LevelContainer, Cgroup: "a/b", Namespace: "shop", Pod: "web", Container: "app", Pressure: &status.Pressure{SomeAvg10: 99, SomeTotalUsec: 100000, FullAvg10: 98.7}},
		{Level: qos.LevelPod, Cgroup: "c", Namespace: "shop", Pod: "old"},
	}})
	whole := strings.Join(lines(v.main()), "\n")
	for _, want := range []string{
		"kubepods 0 some 0.05 % full 0 % memory.pressure: some 0.05 % of the last 10 s, 0.0 s in all; full 0 % of the last 10 s, 0.0 s in all",
		"shop/web 0 some 12.34 % full 1.5 % memory.pressure: some 12.34 % of the last 10 s, 5.9 s in all; full 1.5 % of the last 10 s, 4.2 s in all",
		"app memory.pressure: some 99 % of the last 10 s, 0.1 s in all; full 98.7 % of the last 10 s, 0.0 s in all",
		"shop/old 0 File",
	} {
		if !strings.Contains(whole, want) {
			t.Errorf("there is no %q in\n%s", want, whole)
		}
	}
}

// What happened lately is told, the last first.
func TestEvents(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(ago time.Duration) time.Time { return now.Add(-ago) }
	s := &status.NodeStatus{
		Time: now, Kills: []status.Kill{
			{Time: at(time.Minute), Namespace: "shop", Pod: "gone", Container: "app", Cause: "PodLimit", Message: "128Mi of 128Mi"},
			{Time: at(time.Hour), Namespace: "shop", Pod: "gone", Container: "app", Cause: "ContainerLimit", Message: "the first"},
		},
		Cgroups: []status.Cgroup{{
			Level: qos.LevelContainer, Cgroup: "a", Namespace: "shop", Pod: "web", Container: "app", Verdict: status.Relaxed,
			Relaxed: &status.Relaxation{Planned: 100 << 20, Since: at(10 * time.Minute), Why: "it lost 3.4s of the last 5.2s"},
			Changes: []status.Change{
				{Time: at(time.Second), File: memory.High, By: status.ByForeign, From: 100 << 20, To: memory.Unlimited, Count: 3},
				{Time: at(10 * time.Minute), File: memory.High, By: status.ByMemqos, From: 100 << 20, To: 110 << 20, Count: 1},
			},
		}},
	}
	v := newView(s)
	want := []string{
		"Ago", "Where", "What",
		"1m shop/gone app killed for memory (PodLimit): 128Mi of 128Mi",
		"10m shop/web app memory.high is raised from 100Mi by the stall guard. it lost 3.4s of the last 5.2s",
		"1h0m shop/gone app killed for memory (ContainerLimit): the first",
	}
	if diff := cmp.Diff(want, lines(v.events())); diff != "" {
		t.Errorf("events: -want +got:\n%s", diff)
	}
	want = []string{
		"Ago", "Where", "File", "From", "To", "By", "Times",
		"1s shop/web app memory.high 100Mi max foreign 3",
		"10m shop/web app memory.high 100Mi 110Mi memqos 1",
	}
	if diff := cmp.Diff(want, lines(v.changes())); diff != "" {
		t.Errorf("changes: -want +got:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"None seen."}, lines(newView(&status.NodeStatus{}).events())); diff != "" {
		t.Errorf("nothing: -want +got:\n%s", diff)
	}
}
