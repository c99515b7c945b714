package chart

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/memqos/memqos/config"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const chartDir = "../../deploy/helm/memqos"

// value is one row of the README: a value, or a group of them that is set as one.
type value struct {
	path    []string
	comment string
	byline  string // its default, as JSON
}

// documented returns the rows of values.yaml in its order.
func documented(t *testing.T) []value {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	var rows []value
	var walk func(path []string, m *yaml.Node)
	walk = func(path []string, m *yaml.Node) {
		for i := 0; i < len(m.Content); i += 2 {
			key, child := m.Content[i], m.Content[i+1]
			at := append(slices.Clone(path), key.Value)
			v := value{path: at, comment: prose(key.HeadComment)}
			if child.Kind == yaml.MappingNode && commented(child) {
				if v.comment != "" {
					rows = append(rows, v)
				}
				walk(at, child)
				continue
			}
			var content any
			if err := child.Decode(&content); err != nil {
				t.Fatal(err)
			}
			byline, err := json.Marshal(content)
			if err != nil {
				t.Fatal(err)
			}
			v.byline = string(byline)
			rows = append(rows, v)
		}
	}
	walk(nil, doc.Content[0])
	return rows
}

func commented(m *yaml.Node) bool {
	for i := 0; i < len(m.Content); i += 2 {
		if m.Content[i].HeadComment != "" || m.Content[i+1].Kind == yaml.MappingNode && commented(m.Content[i+1]) {
			return true
		}
	}
	return false
}

func prose(comment string) string {
	var words []string
	for line := range strings.Lines(comment) {
		words = append(words, strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "#")))
	}
	return strings.Join(words, " ")
}

func TestEveryValueIsCommented(t *testing.T) {
	for _, v := range documented(t) {
		if v.comment == "" {
			t.Errorf("%s has no comment in values.yaml", strings.Join(v.path, "."))
		}
	}
}

// The README's table is made of values.yaml: make update.
func TestReadme(t *testing.T) {
	const begin, end = "<!-- made of values.yaml by `make update` -->\n", "<!-- end -->\n"
	file := filepath.Join(chartDir, "README.md")
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(data), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s lacks %q or %q", file, begin, end)
	}
	var b strings.Builder
	fmt.Fprint(&b, before, begin, "\n| value | default | meaning |\n|---|---|---|\n")
	for _, v := range documented(t) {
		byline := ""
		if v.byline != "" {
			byline = "`" + v.byline + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", strings.Join(v.path, "."), byline, strings.ReplaceAll(v.comment, "|", `\|`))
	}
	fmt.Fprint(&b, "\n", end, after)
	golden(t, file, b.String())
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

type schema struct {
	Type                 any               `json:"type"`
	AdditionalProperties any               `json:"additionalProperties"`
	Properties           map[string]schema `json:"properties"`
	Enum                 []any             `json:"enum"`
}

func readSchema(t *testing.T) schema {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(chartDir, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var s schema
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// values.yaml and its schema know the same values, and a misspelt one is refused.
func TestSchemaKnowsTheValues(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(data, &values); err != nil {
		t.Fatal(err)
	}
	var compare func(at string, s schema, values map[string]any)
	compare = func(at string, s schema, values map[string]any) {
		if s.AdditionalProperties != false {
			t.Errorf("schema of %s: additionalProperties is %v, want false", at, s.AdditionalProperties)
		}
		known := maps.Clone(s.Properties)
		delete(known, "global") // helm's own
		if diff := cmp.Diff(slices.Sorted(maps.Keys(values)), slices.Sorted(maps.Keys(known))); diff != "" {
			t.Errorf("%s: fields (-values.yaml +schema):\n%s", at, diff)
		}
		for name, child := range known {
			if m, ok := values[name].(map[string]any); ok && child.Properties != nil {
				compare(at+"."+name, child, m)
			}
		}
	}
	compare("values", readSchema(t), values)
}

// .Values.config has every field of MemoryQoSConfiguration and no other.
func TestSchemaKnowsTheConfiguration(t *testing.T) {
	var compare func(at string, s schema, typ reflect.Type)
	compare = func(at string, s schema, typ reflect.Type) {
		fields := map[string]reflect.Type{}
		for f := range typ.Fields() {
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
				fields[name] = f.Type
			}
		}
		if diff := cmp.Diff(slices.Sorted(maps.Keys(fields)), slices.Sorted(maps.Keys(s.Properties))); diff != "" {
			t.Errorf("%s: fields (-type +schema):\n%s", at, diff)
		}
		for name, f := range fields {
			if f.Kind() == reflect.Struct && strings.HasSuffix(f.PkgPath(), "memqos/config") {
				compare(at+"."+name, s.Properties[name], f)
			}
		}
	}
	s := readSchema(t).Properties["config"]
	compare("config", s, reflect.TypeFor[config.MemoryQoSConfiguration]())

	var versions []any
	versions = append(versions, "")
	for _, v := range config.EmulationVersions() {
		versions = append(versions, string(v))
	}
	if diff := cmp.Diff(versions, s.Properties["emulationVersion"].Enum); diff != "" {
		t.Errorf("emulationVersion (-want +schema):\n%s", diff)
	}
}

// An alert's runbook is a heading of docs/operations.md, and a test has it fire.
func TestRunbooks(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(chartDir, "files", "alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert       string
				Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	tested, err := os.ReadFile("testdata/alerts_test.yaml")
	if err != nil {
		t.Fatal(err)
	}
	alerts := 0
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" {
				continue
			}
			alerts++
			_, anchor, _ := strings.Cut(r.Annotations["runbook_url"], "docs/operations.md#")
			if anchor != strings.ToLower(r.Alert) {
				t.Errorf("%s: runbook_url is %q, want it to end in docs/operations.md#%s", r.Alert, r.Annotations["runbook_url"], strings.ToLower(r.Alert))
			}
			if !bytes.Contains(doc, []byte("\n### "+r.Alert+"\n")) {
				t.Errorf("docs/operations.md has no heading %q", "### "+r.Alert)
			}
			if !bytes.Contains(tested, []byte("alertname: "+r.Alert+"\n    exp_alerts:\n")) {
				t.Errorf("no test in testdata/alerts_test.yaml has %s fire", r.Alert)
			}
		}
	}
	if alerts == 0 {
		t.Error("no alert found")
	}
}

var (
	metricNames  = regexp.MustCompile(`(?:^|[^:a-z])(memqos_[a-z0-9_]+)`) // not a recorded node:memqos_writes:rate5m
	exposedNames = regexp.MustCompile(`(?m)^(memqos_[a-z0-9_]+)`)
)

// Alerts and dashboards ask for series that the agent has.
func TestQueriesNameMetrics(t *testing.T) {
	known := map[string]bool{}
	exposition, err := os.ReadFile("../../metrics/testdata/exposition.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range exposedNames.FindAllSubmatch(exposition, -1) {
		known[string(m[1])] = true
	}
	files, err := filepath.Glob(filepath.Join(chartDir, "dashboards", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 || len(known) == 0 {
		t.Fatalf("%d dashboards, %d metrics found", len(files), len(known))
	}
	for _, file := range append(files, filepath.Join(chartDir, "files", "alerts.yaml")) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range metricNames.FindAllSubmatch(data, -1) {
			if name := string(m[1]); !known[name] {
				t.Errorf("%s asks for %s, which metrics/ does not have", filepath.Base(file), name)
			}
		}
	}
}

var uses = regexp.MustCompile(`(?m)^\s*(?:- )?uses: (\S+)(.*)$`)

// A tag can be moved to other code, a commit cannot.
func TestActionsArePinned(t *testing.T) {
	files, err := filepath.Glob("../../.github/workflows/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	pinned := regexp.MustCompile(`^[\w.-]+/[\w./-]+@[0-9a-f]{40}$`)
	n := 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range uses.FindAllStringSubmatch(string(data), -1) {
			n++
			if !pinned.MatchString(m[1]) || !strings.Contains(m[2], "# v") {
				t.Errorf("%s: %s: want a full commit and its version as a comment", filepath.Base(file), strings.TrimSpace(m[0]))
			}
		}
	}
	if n == 0 {
		t.Error("no action found")
	}
}

// What krew gets of a release has its version and digests and no placeholder, and the
// archives' names are those that goreleaser gives.
func TestKrew(t *testing.T) {
	const amd, arm = "1111111111111111111111111111111111111111111111111111111111111111", "2222222222222222222222222222222222222222222222222222222222222222"
	sums := filepath.Join(t.TempDir(), "SHA256SUMS")
	write := func(text string) {
		if err := os.WriteFile(sums, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(amd + "  memqos_linux_amd64.tar.gz\n" + arm + "  memqos_linux_arm64.tar.gz\n")
	out, err := exec.Command("../../hack/krew.sh", "v1.2.3", sums).Output()
	if err != nil {
		t.Fatal(err)
	}
	var plugin struct {
		Spec struct {
			Version   string
			Platforms []struct{ URI, SHA256 string }
		}
	}
	if err := yaml.Unmarshal(out, &plugin); err != nil {
		t.Fatal(err)
	}
	const from = "https://github.com/memqos/memqos/releases/download/v1.2.3/memqos_linux_"
	got := fmt.Sprint(plugin.Spec.Version, plugin.Spec.Platforms)
	if want := fmt.Sprint("v1.2.3", []struct{ URI, SHA256 string }{{from + "amd64.tar.gz", amd}, {from + "arm64.tar.gz", arm}}); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if left := regexp.MustCompile(`0{64}|v0\.0\.0`).Find(out); left != nil {
		t.Errorf("%s is left", left)
	}
	config, err := os.ReadFile("../../.goreleaser.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if want := `name_template: "{{ .ProjectName }}_{{ .Os }}_{{ .Arch }}"`; !bytes.Contains(config, []byte(want)) {
		t.Errorf(".goreleaser.yaml lacks %s", want)
	}
	write(amd + "  memqos_linux_amd64.tar.gz\n")
	if out, err := exec.Command("../../hack/krew.sh", "v1.2.3", sums).Output(); err == nil || len(out) > 0 {
		t.Errorf("a digest is missing: %v, %q", err, out)
	}
}
