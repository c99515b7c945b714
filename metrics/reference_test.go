package metrics

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/oom"
)

var update = flag.Bool("update", false, "rewrite the golden exposition and the table of docs/metrics.md")

// exposed are the series of an agent in which everything has happened once. They
// are as many as a node can have, but for reasons: how many pods it runs makes no
// difference.
func exposed(t *testing.T) []*dto.MetricFamily {
	t.Helper()
	reg := &recorder{Registry: prometheus.NewPedanticRegistry()}
	m := New(reg, "v1.2.3", "0123456789abcdef0123456789abcdef01234567", "go1.26")
	m.Write("container", memory.High, Written)
	m.Repair("qos", memory.Min, Reset)
	for _, file := range []memory.File{memory.Min, memory.Low, memory.High} {
		m.LeftToKubelet(file, file == memory.High)
	}
	m.ContestedFiles(1)
	m.Landings(1)
	m.Landed(Deferred)
	m.GuardChanged("MemoryThrottleRelaxed")
	m.Guard(180, 2, 1)
	m.OOM(string(oom.PodLimit))
	m.Watches(442, 1)
	m.EventsLost()
	m.BundleRefused()
	m.TimeToValue(0.003)
	m.Skipped("Unlocatable")
	m.Supported(4 << 30)
	m.Unsupported("CgroupV1")
	m.Feature("MemoryQoS", true)
	m.AnnotationsIgnored(2)
	m.Reloaded(true, time.Unix(1, 0))
	m.Config("1.36", "Enforce", "TieredReservation", 0.9)
	m.FullPass(2, 0.25, Found{
		Cgroups:   map[string]int{"container": 220, "pod": 110, "qos": 1, "node": 1},
		Drifted:   map[string]map[memory.File]int{"pod": {memory.Max: 1}},
		Protected: map[string]map[memory.File]float64{"node": {memory.Min: 64 << 20, memory.Low: 128 << 20}},
		Railed:    map[string]int{"reclaimMargin": 3},
	})
	m.Containers(func() []Container { return testContainers })
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	// A family without a series is not gathered.
	for name := range reg.names() {
		if !slices.ContainsFunc(families, func(f *dto.MetricFamily) bool { return f.GetName() == name }) {
			t.Errorf("nothing was counted in %s: have this test do so", name)
		}
	}
	return families
}

// recorder is a registry that knows what was registered.
type recorder struct {
	*prometheus.Registry
	collectors []prometheus.Collector
}

func (r *recorder) MustRegister(c ...prometheus.Collector) {
	r.collectors = append(r.collectors, c...)
	r.Registry.MustRegister(c...)
}

var fqName = regexp.MustCompile(`fqName: "(\w+)"`)

func (r *recorder) names() map[string]bool {
	names := map[string]bool{}
	for _, c := range r.collectors {
		descs := make(chan *prometheus.Desc, 10)
		c.Describe(descs)
		close(descs)
		for d := range descs {
			names[fqName.FindStringSubmatch(d.String())[1]] = true
		}
	}
	return names
}

// A kill of any cause is told from none.
func TestOOMCauses(t *testing.T) {
	m := New(prometheus.NewRegistry(), "", "", "")
	before := testutil.CollectAndCount(m.ooms)
	for _, cause := range []oom.Cause{oom.ContainerLimit, oom.PodLimit, oom.QOSLimit, oom.KubepodsLimit, oom.NodeOutOfMemory, oom.GroupKill, oom.Unknown} {
		m.OOM(string(cause))
	}
	if after := testutil.CollectAndCount(m.ooms); before != after {
		t.Errorf("%d causes, %d of them known from the start", after, before)
	}
}

// What a scrape brings, to the letter: names, labels and help are an interface.
func TestExposition(t *testing.T) {
	var b bytes.Buffer
	for _, f := range exposed(t) {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, filepath.Join("testdata", "exposition.txt"), b.String())
}

// The table of docs/metrics.md is made of the registry.
func TestPage(t *testing.T) {
	const begin, end = "<!-- made of package metrics by `make update` -->\n", "<!-- end -->\n"
	page := filepath.Join("..", "docs", "metrics.md")
	old, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(old), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s lacks %q or %q", page, begin, end)
	}
	var b strings.Builder
	fmt.Fprint(&b, before, begin, "| metric | type | labels | meaning |\n|---|---|---|---|\n")
	series := 0
	for _, f := range exposed(t) {
		if !strings.HasPrefix(f.GetName(), "memqos_container_memory_") {
			series += seriesOf(f)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()), labelsOf(f), f.GetHelp())
	}
	fmt.Fprintf(&b, "\n%d series of memqos's own for each agent, with one reason for each metric that has reasons. With `containerMetrics`\n17 more for each container: 110 pods of two containers make %d.\n%s%s", series, ofContainers(t), end, after)
	golden(t, page, b.String())
}

// seriesOf is how many time series Prometheus makes of a family.
func seriesOf(f *dto.MetricFamily) (n int) {
	for _, m := range f.GetMetric() {
		if h := m.GetHistogram(); h != nil {
			n += len(h.GetBucket()) + 3 // and +Inf, sum, count
		} else {
			n++
		}
	}
	return n
}

// labelsOf lists the labels of a family, and their values where they are few and
// all there.
func labelsOf(f *dto.MetricFamily) string {
	values := map[string][]string{}
	var names []string
	for _, m := range f.GetMetric() {
		for _, l := range m.GetLabel() {
			if !slices.Contains(names, l.GetName()) {
				names = append(names, l.GetName())
			}
			if !slices.Contains(values[l.GetName()], l.GetValue()) {
				values[l.GetName()] = append(values[l.GetName()], l.GetValue())
			}
		}
	}
	var out []string
	for _, name := range names {
		label := "`" + name + "`"
		if len(values[name]) > 1 {
			label += ": " + strings.Join(values[name], ", ")
		}
		out = append(out, label)
	}
	return strings.Join(out, "; ")
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s is stale, `make update` rewrites it (-want +got):\n%s", file, diff)
	}
}
