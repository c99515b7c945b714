//go:build browser

package see

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/hack/browser"
	"github.com/memqos/memqos/memory"
	memqospage "github.com/memqos/memqos/page"
	"github.com/memqos/memqos/qos"
	"github.com/memqos/memqos/status"
)

// hostile is what no API server lets through as a name and a browser must not run.
const hostile = `"><img src=x onerror="window.owned=1"><script>window.owned=1</script></summary>'${7*7}`

func hostileNode(t *testing.T) *status.NodeStatus {
	t.Helper()
	c, err := config.Load("")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s := &status.NodeStatus{Node: "node " + hostile, Time: now, Agent: &status.Agent{Version: "test", Configuration: c, Watching: true, Refused: hostile}}
	add := func(level qos.Level, cgroup, namespace, pod, container string, want, has memory.Values, usage uint64) {
		v := status.Fulfilled
		if want[memory.High] != has[memory.High] {
			v = status.Drifted
		}
		s.Cgroups = append(s.Cgroups, status.Cgroup{Level: level, Cgroup: cgroup, Namespace: namespace, Pod: pod, Container: container, Verdict: v, Wanted: want, Actual: has, UsageBytes: usage,
			Pressure: &status.Pressure{SomeAvg10: 12.34, SomeTotalUsec: 5900000, FullAvg10: 1.5},
			Reason:   map[memory.File]string{memory.High: "factor 0.9 " + hostile},
			Changes:  []status.Change{{Time: now, File: memory.High, By: status.ByForeign, From: 1 << 20, To: memory.Unlimited, Count: 3}}})
	}
	values := func(least, high, most memory.Value) memory.Values {
		return memory.Values{memory.Min: least, memory.Low: 0, memory.High: high, memory.Max: most}
	}
	add(qos.LevelNode, "kubepods", "", "", "", values(64<<20, memory.Unlimited, 1<<30), values(64<<20, memory.Unlimited, 1<<30), 100<<20)
	for i := range 12 {
		name := fmt.Sprintf("web-%d", i)
		if i == 3 {
			name = hostile
		}
		dir := fmt.Sprintf("kubepods/burstable/pod%d", i)
		has := values(64<<20, 127504384, 128<<20)
		want := values(64<<20, 127504384, 128<<20)
		if i == 5 {
			has[memory.High] = memory.Unlimited
		}
		add(qos.LevelPod, dir, "shop", name, "", values(64<<20, memory.Unlimited, 128<<20), values(64<<20, memory.Unlimited, 128<<20), uint64(i)*11<<20)
		add(qos.LevelContainer, dir+"/app", "shop", name, "app "+hostile, want, has, uint64(i)*11<<20)
		none := values(0, memory.Unlimited, memory.Unlimited)
		add(qos.LevelContainer, dir+"/pause", "shop", name, status.Sandbox, none, none, 1<<20)
	}
	s.Kills = []status.Kill{{Time: now, Namespace: "shop", Pod: hostile, Container: "app", Cause: "ContainerLimit", Message: hostile}}
	return s
}

// The page in a real browser: what it shows is what the status says, nothing of a
// pod's is run, it fits narrow and wide, it can be used by keyboard, and it refreshes.
func TestPage(t *testing.T) {
	s := hostileNode(t)
	var asked atomic.Int32
	server := httptest.NewServer(memqospage.Handler(func(context.Context, string, string) (*status.NodeStatus, error) {
		asked.Add(1)
		return s, nil
	}, true))
	defer server.Close()
	ctx, stop, err := browser.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	var complaints []string // of the Content-Security-Policy too
	chromedp.ListenTarget(ctx, func(ev any) {
		switch e := ev.(type) {
		case *runtime.EventExceptionThrown:
			complaints = append(complaints, e.ExceptionDetails.Error())
		case *page.EventJavascriptDialogOpening:
			complaints = append(complaints, "a dialog: "+e.Message)
		}
	})
	run := func(actions ...chromedp.Action) {
		t.Helper()
		if err := chromedp.Run(ctx, actions...); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]map[string]string{}
	for _, c := range s.Cgroups {
		want[c.Cgroup] = map[string]string{}
		for file, v := range c.Actual {
			want[c.Cgroup][string(file)] = v.String()
		}
	}
	for i, look := range Looks {
		run(Look(i), chromedp.Navigate(server.URL), chromedp.WaitVisible("#pods"))
		shown, err := Shown(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if diff := Differences(want, shown); len(diff) > 0 || len(shown) != len(want) {
			t.Errorf("%s: %d cgroups shown, want %d; %s", look.Name, len(shown), len(want), strings.Join(diff, "; "))
		}
		run(chromedp.Evaluate(`document.querySelectorAll("details").forEach(d => d.open = true)`, nil))
		if n, err := Overflow(ctx); err != nil || n > 0 {
			t.Errorf("%s: %d pixels too wide (%v)", look.Name, n, err)
		}
		var marks, outside int
		run(chromedp.Evaluate(`document.querySelectorAll("svg.bar title").length`, &marks),
			chromedp.Evaluate(`[...document.querySelectorAll("svg.bar title")].filter(t => {
				const m = t.parentNode.getBoundingClientRect(), b = t.closest("svg").getBoundingClientRect(), near = 0.01;
				return m.width < 1 || m.left < b.left - near || m.right > b.right + near || m.top < b.top - near || m.bottom > b.bottom + near;
			}).length`, &outside))
		if want := 2 + 2*12 + 3*12 - 1; marks != want || outside > 0 {
			t.Errorf("%s: %d marks, want %d; %d are not wholly to be seen", look.Name, marks, want, outside)
		}
		var background string
		run(chromedp.Evaluate(`getComputedStyle(document.body).backgroundColor`, &background))
		if dark := background == "rgb(13, 17, 23)"; dark != (look.Scheme == "dark") {
			t.Errorf("%s: background %s", look.Name, background)
		}
	}
	var owned, styled bool
	var first, images, scripts string
	run(
		chromedp.Evaluate(`window.owned === 1`, &owned),
		chromedp.Evaluate(`String(document.querySelectorAll("img").length)`, &images),
		chromedp.Evaluate(`String(document.querySelectorAll("script").length)`, &scripts),
		chromedp.Evaluate(`getComputedStyle(document.querySelector("summary")).display === "grid"`, &styled),
		chromedp.Text("details.pod .name", &first),
	)
	if owned || images != "0" || scripts != "1" {
		t.Errorf("something of a pod became part of the page: owned %v, %s images, %s scripts", owned, images, scripts)
	}
	if !styled {
		t.Error("the policy keeps the page's own style out")
	}
	if !strings.Contains(first, "web-5") {
		t.Errorf("the first pod is %q, want the one that drifted", first)
	}
	// By keyboard: past the header into the first pod, which opens, and the filter.
	var open bool
	var left string
	run(chromedp.Navigate(server.URL), chromedp.WaitVisible("#pods"), chromedp.Focus("details.pod summary"), chromedp.KeyEvent(kb.Enter),
		chromedp.Evaluate(`document.querySelector("details.pod").open`, &open),
		chromedp.Focus("#find"), chromedp.SendKeys("#find", "web-1"),
		chromedp.Evaluate(`[...document.querySelectorAll("details.pod")].filter(d => !d.hidden).map(d => d.dataset.find).sort().join()`, &left))
	if !open {
		t.Error("Enter does not open a pod")
	}
	if left != "shop/web-1,shop/web-10,shop/web-11" {
		t.Errorf("found %s", left)
	}
	// It refreshes by itself, keeps what is open and filtered, and stops when told.
	before := asked.Load()
	deadline := time.Now().Add(30 * time.Second)
	for asked.Load() == before && time.Now().Before(deadline) {
		time.Sleep(100 * time.Millisecond)
	}
	time.Sleep(time.Second) // the answer takes its place
	run(chromedp.Evaluate(`document.querySelector("details.pod").open`, &open),
		chromedp.Evaluate(`String([...document.querySelectorAll("details.pod")].filter(d => !d.hidden).length)`, &left))
	if asked.Load() == before || !open || left != "3" {
		t.Errorf("after a refresh: asked %d times, open %v, %s pods", asked.Load()-before, open, left)
	}
	if len(complaints) > 0 {
		t.Errorf("the browser complains: %q", complaints)
	}
}
