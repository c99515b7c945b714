package status

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/qos"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// whole has every field set.
func whole(t *testing.T) *NodeStatus {
	t.Helper()
	c, err := config.Load("")
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return &NodeStatus{
		TypeMeta: metav1.TypeMeta{APIVersion: APIVersion, Kind: Kind}, Node: "n", Time: at, AllocatableBytes: 1 << 30,
		Agent: &Agent{
			Version: "v1", Started: at, Idle: "CgroupV1", IdleMessage: "m", Configuration: c, Refused: "r", LastPass: &at, Watching: true,
			LeftToKubelet: []memory.File{memory.High}, KubeletConfigured: []memory.File{memory.Min},
		},
		Machine: Machine{Kernel: "6.1", CgroupDriver: "systemd", Kubepods: "kubepods.slice", MountOptions: []string{"nsdelegate"}, Pressure: true, PageSize: 4096, CapacityBytes: 2 << 30, SwapBytes: 1},
		Cgroups: []Cgroup{{
			Level: qos.LevelContainer, Cgroup: "kubepods.slice/x", QOSClass: corev1.PodQOSBurstable, Namespace: "shop", Pod: "web", UID: "u", Container: "app",
			Verdict: Relaxed, Since: &at, Wanted: memory.Values{memory.High: memory.Unlimited}, Actual: memory.Values{memory.High: 4096},
			Reason: map[memory.File]string{memory.High: "why"}, UsageBytes: 1, Events: map[string]uint64{"high": 2}, Pressure: &Pressure{SomeAvg10: 1.5, SomeTotalUsec: 3, FullAvg10: 0.5, FullTotalUsec: 1},
			Relaxed: &Relaxation{Planned: 4096, Since: at, Why: "stood still"}, Throttled: &Throttling{From: at, HighEvents: 5, SomeUsec: 6, FullUsec: 7},
			Changes: []Change{{Time: at, File: memory.High, By: ByForeign, From: 1, To: 2, Count: 3}},
		}},
		Kills: []Kill{{Time: at, Namespace: "shop", Pod: "web", Container: "app", Cause: "PodLimit", Message: "m"}},
	}
}

// The JSON is an interface: scripts and an older or newer kubectl memqos read it.
func TestJSON(t *testing.T) {
	s := whole(t)
	got, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "status.json")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.TrimSpace(string(want)), string(got)); diff != "" {
		t.Errorf("the JSON changed: a field that goes or means something else is another apiVersion (-want +got):\n%s", diff)
	}
	back, err := Parse(got)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s, back, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
}

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		`{"apiVersion":"memqos.io/v1alpha1","kind":"NodeStatus"}`:                                    "",
		`{"apiVersion":"memqos.io/v1alpha1","kind":"NodeStatus","later":1,"cgroups":[{"later":[]}]}`: "",
		`{"apiVersion":"memqos.io/v1beta1","kind":"NodeStatus"}`:                                     `want a NodeStatus of memqos.io/v1alpha1`,
		`{"kind":"NodeStatus"}`:                             `is a "NodeStatus" of ""`,
		`{"apiVersion":"memqos.io/v1alpha1","kind":"Plan"}`: `is a "Plan"`,
		`{"apiVersion":"\u001b[31m\n","kind":"NodeStatus"}`: `of "?[31m?"`,
		`{"apiVersion":"memqos.io/v1alpha1","kind":"NodeStatus","cgroups":[{"actual":{"memory.high":7}}]}`: "read the agent's answer",
		`[]`: "read the agent's answer",
		``:   "read the agent's answer",
	} {
		_, err := Parse([]byte(in))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", in, err, want)
		}
	}
}

// The verdict that most asks for somebody comes first; one that is not known, before all.
func TestSeverity(t *testing.T) {
	order := []Verdict{Drifted, Relaxed, Pending, Unknown, Fulfilled}
	for i := 1; i < len(order); i++ {
		if order[i-1].Severity() >= order[i].Severity() {
			t.Errorf("%s is not before %s", order[i-1], order[i])
		}
	}
	if Verdict("Later").Severity() > Drifted.Severity() {
		t.Error("a verdict of a later agent is behind the others")
	}
}

func TestRail(t *testing.T) {
	node := func(reserve string, capacity int64, values memory.Values) *NodeStatus {
		c, err := config.Load("", func(c *config.MemoryQoSConfiguration) { c.Rails.SystemReserve = new(resource.MustParse(reserve)) })
		if err != nil {
			t.Fatal(err)
		}
		return &NodeStatus{Agent: &Agent{Configuration: c}, Machine: Machine{CapacityBytes: capacity, PageSize: 4096}, Cgroups: []Cgroup{
			{Level: qos.LevelQOS, Wanted: memory.Values{memory.Min: 1 << 40}}, {Level: qos.LevelNode, Wanted: values},
		}}
	}
	for name, tt := range map[string]struct {
		in   *NodeStatus
		want Rail
	}{
		"memory.min":          {node("100Mi", 1<<30, memory.Values{memory.Min: 64 << 20}), Rail{Sum: 64 << 20, Top: 924 << 20}},
		"tiered":              {node("1Gi", 4<<30, memory.Values{memory.Min: 64 << 20, memory.Low: 96 << 20}), Rail{Sum: 96 << 20, Top: 3 << 30}},
		"no rail":             {node("0", 1<<30, memory.Values{memory.Min: 1}), Rail{Sum: 1}},
		"capacity not known":  {node("100Mi", 0, nil), Rail{}},
		"an agent that idles": {&NodeStatus{Agent: &Agent{}}, Rail{}},
		"no agent":            {&NodeStatus{}, Rail{}},
	} {
		if got := tt.in.Rail(); got != tt.want {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{"web-1 ü 日": "web-1 ü 日", "a\x1b[2Jb\r\n\x00": "a?[2Jb???", "\u202eabc": "?abc", "": ""} {
		if got := Printable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
