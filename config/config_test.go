package config

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/api/resource"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const header = "apiVersion: memqos.io/v1alpha1\nkind: MemoryQoSConfiguration\n"

func TestDefaults(t *testing.T) {
	c, err := Decode([]byte(header))
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "defaults.json")
	if *update {
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.TrimSpace(string(want)), string(got)); diff != "" {
		t.Errorf("defaults changed (-want +got):\n%s", diff)
	}
}

func TestDecode(t *testing.T) {
	c, err := Decode([]byte("# a comment\n---\n" + header + `
featureGates: {MemoryQoS: false}
emulationVersion: "1.22"
cgroupRoot: /kubelet
cgroupDriver: cgroupfs
resyncPeriod: 1m
metricsBindAddress: 127.0.0.1:1
containerMetrics: true
metricsSecure: true
metricsCertDir: /tls
pprofBindAddress: 127.0.0.1:2
healthzBindAddress: "0"
logging: {format: text, verbosity: 4}
`))
	if err != nil {
		t.Fatal(err)
	}
	if c.Enabled(MemoryQoS) || c.EmulationVersion != "1.22" || *c.MemoryThrottlingFactor != 0.8 || c.CgroupRoot != "/kubelet" ||
		c.CgroupDriver != Cgroupfs || c.ResyncPeriod.Minutes() != 1 || c.HealthzBindAddress != "0" || c.Logging.Verbosity != 4 {
		t.Errorf("got %+v", c)
	}
}

// full sets every field that a document of 1.37 can set.
const full = `featureGates: {MemoryQoS: true}
emulationVersion: "1.37"
memoryThrottlingFactor: 0.8
memoryReservationPolicy: None
mode: DryRun
rules:
- name: batch
  match:
    namespaces: [batch, team-*]
    podSelector:
      matchLabels: {app: web}
      matchExpressions: [{key: tier, operator: In, values: [a, b]}]
    qosClasses: [Burstable]
    priorityClassNames: [low]
  memoryThrottlingFactor: 0.5
  memoryReservationPolicy: TieredReservation
  memoryHigh: Enabled
  stallGuard: Disabled
- {name: rest, match: {}, exclude: true}
stallGuard: {enabled: false, stallShare: 0.5, window: 20s, hold: 1m}
rails: {systemReserve: 1Gi, reclaimMargin: 0.05}
restoreOnExit: Keep
cgroupRoot: /kubelet
cgroupDriver: cgroupfs
bundlePaths: [/run/<id>/config.json]
kubeletConfigFile: /var/lib/kubelet/config.yaml
stateDir: /var/memqos
resyncPeriod: 1m
metricsBindAddress: 127.0.0.1:1
containerMetrics: true
metricsSecure: true
metricsCertDir: /tls
pprofBindAddress: 127.0.0.1:2
healthzBindAddress: "0"
logging: {format: text, verbosity: 4}
`

// A copy shares nothing: whatever is changed in it, the original stays. full has
// every field set, so a field that DeepCopy forgets shows here.
func TestDeepCopy(t *testing.T) {
	decode := func() *MemoryQoSConfiguration {
		c, err := Decode([]byte(header + full))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := decode()
	cp := c.DeepCopy()
	if diff := cmp.Diff(c, cp); diff != "" {
		t.Errorf("the copy differs (-original +copy):\n%s", diff)
	}
	shared(t, "", reflect.ValueOf(c).Elem(), reflect.ValueOf(cp).Elem())
}

// shared fails for every pointer, map and slice that is not set, or in both.
func shared(t *testing.T, at string, a, b reflect.Value) {
	switch a.Kind() {
	case reflect.Pointer, reflect.Map, reflect.Slice:
		if a.IsNil() {
			if !strings.HasPrefix(at, ".Rules[1].") { // it is there to exclude
				t.Errorf("%s is not set", at)
			}
			return
		}
		if a.Pointer() == b.Pointer() {
			t.Errorf("%s is shared", at)
		}
	}
	switch a.Kind() {
	case reflect.Pointer:
		if a.Type() != reflect.TypeFor[*resource.Quantity]() {
			shared(t, at, a.Elem(), b.Elem())
		}
	case reflect.Slice:
		for i := range a.Len() {
			shared(t, at+"["+strconv.Itoa(i)+"]", a.Index(i), b.Index(i))
		}
	case reflect.Struct:
		for i := range a.NumField() {
			shared(t, at+"."+a.Type().Field(i).Name, a.Field(i), b.Field(i))
		}
	}
}

// The defaults that depend on the release.
func TestDefaultsOfRelease(t *testing.T) {
	for _, tc := range []struct {
		version EmulationVersion
		in      MemoryReservationPolicy
		factor  float64
		policy  MemoryReservationPolicy
	}{
		{"1.26", "", 0.8, ""},
		{"1.35", "", 0.9, ""},
		{"1.36", "", 0.9, TieredReservation},
		{"1.37", "", 0.9, TieredReservation},
		{"1.37", NoReservation, 0.9, NoReservation},
	} {
		c, err := Load("", func(c *MemoryQoSConfiguration) {
			c.EmulationVersion, c.MemoryReservationPolicy = tc.version, tc.in
		})
		if err != nil {
			t.Errorf("%s %q: %v", tc.version, tc.in, err)
			continue
		}
		if *c.MemoryThrottlingFactor != tc.factor || c.MemoryReservationPolicy != tc.policy {
			t.Errorf("%s %q: got factor %v policy %q, want %v %q", tc.version, tc.in, *c.MemoryThrottlingFactor, c.MemoryReservationPolicy, tc.factor, tc.policy)
		}
	}
}

// Each error must name the field and what to do.
func TestDecodeErrors(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"empty", "", "0 YAML documents"},
		{"two documents", header + "---\n" + header, "2 YAML documents"},
		{"not yaml", "{", "yaml"},
		{"other kind", "apiVersion: v1\nkind: ConfigMap\n", `kind "ConfigMap"`},
		{"other version", "apiVersion: memqos.io/v9\nkind: MemoryQoSConfiguration\n", "memqos.io/v1alpha1"},
		{"unknown field", header + "throttling: 1\n", `unknown field "throttling"`},
		{"wrong case", header + "memorythrottlingfactor: 0.5\n", `unknown field "memorythrottlingfactor"`},
		{"duplicate field", header + "cgroupRoot: /a\ncgroupRoot: /b\n", "already"},
		{"unknown gate", header + "featureGates: {Other: true}\n", `featureGates: Unsupported value: "Other": supported values: "MemoryQoS"`},
		{"gate not bool", header + "featureGates: {MemoryQoS: maybe}\n", "bool"},
		{"unquoted version", header + "emulationVersion: 1.30\n", "put it in quotes"},
		{"version", header + "emulationVersion: \"1.21\"\n", `emulationVersion: Unsupported value: "1.21"`},
		{"factor 0", header + "memoryThrottlingFactor: 0\n", "memoryThrottlingFactor: Invalid value: 0: must be greater than 0 and at most 1"},
		{"factor 1.1", header + "memoryThrottlingFactor: 1.1\n", "memoryThrottlingFactor: Invalid value: 1.1"},
		{"policy of an older release", header + "memoryReservationPolicy: TieredReservation\n", `memoryReservationPolicy: Invalid value: "TieredReservation": the kubelet 1.27 has no such setting: remove it, or set emulationVersion to "1.36" or later`},
		{"policy", header + "emulationVersion: \"1.36\"\nmemoryReservationPolicy: HardReservation\n", `memoryReservationPolicy: Unsupported value: "HardReservation": supported values: "None", "TieredReservation"`},
		{"relative root", header + "cgroupRoot: kubelet\n", "cgroupRoot: Invalid value"},
		{"root escapes", header + "cgroupRoot: /../x\n", "cgroupRoot: Invalid value"},
		{"root is slice", header + "cgroupRoot: /kubelet.slice\n", "not the name of the slice"},
		{"driver", header + "cgroupDriver: openrc\n", `cgroupDriver: Unsupported value: "openrc"`},
		{"resync", header + "resyncPeriod: 10ms\n", "resyncPeriod: Invalid value"},
		{"address", header + "metricsBindAddress: nowhere\n", "metricsBindAddress: Invalid value"},
		{"certificates without TLS", header + "metricsCertDir: /tls\n", "metricsCertDir: Invalid value: \"/tls\": is used with metricsSecure alone"},
		{"certificates by a relative path", header + "metricsSecure: true\nmetricsCertDir: tls\n", "metricsCertDir: Invalid value"},
		{"profiles for the network", header + "pprofBindAddress: :9813\n", "pprofBindAddress: Invalid value: \":9813\": must be a loopback address"},
		{"profiles by name", header + "pprofBindAddress: localhost:9813\n", "pprofBindAddress: Invalid value"},
		{"profiles without port", header + "pprofBindAddress: 127.0.0.1\n", "pprofBindAddress: Invalid value"},
		{"port", header + "healthzBindAddress: \":99999\"\n", "healthzBindAddress: Invalid value"},
		{"log format", header + "logging: {format: xml}\n", "logging.format: Unsupported value"},
		{"verbosity", header + "logging: {verbosity: 11}\n", "logging.verbosity: Invalid value"},
		{"mode", header + "mode: Observe\n", `mode: Unsupported value: "Observe": supported values: "Enforce", "DryRun"`},
		{"rule without name", header + "rules: [{match: {}}]\n", "rules[0].name: Required value"},
		{"rule name", header + "rules: [{name: A b, match: {}}]\n", `rules[0].name: Invalid value: "A b": a lowercase RFC 1123 label`},
		{"same rule twice", header + "rules: [{name: a, match: {}}, {name: a, match: {}}]\n", `rules[1].name: Duplicate value: "a"`},
		{"rule without match", header + "rules: [{name: a, exclude: true}]\n", "rules[0].match: Required value: say which pods are meant; {} is every pod"},
		{"rule with unknown field", header + "rules: [{name: a, match: {namespace: x}}]\n", `unknown field "rules[0].match.namespace"`},
		{"selector of namespaces", header + "rules: [{name: a, match: {namespaceSelector: {}}}]\n", `unknown field "rules[0].match.namespaceSelector"`},
		{"pattern within", header + "rules: [{name: a, match: {namespaces: [\"a*b\"]}}]\n", `rules[0].match.namespaces[0]: Invalid value: "a*b": must be the name of a namespace`},
		{"any namespace", header + "rules: [{name: a, match: {namespaces: [\"*\"]}}]\n", "for every namespace remove the list"},
		{"no namespace", header + "rules: [{name: a, match: {namespaces: []}}]\n", "rules[0].match.namespaces: Invalid value: []: is an empty list: remove it for any, or name at least one"},
		{"no class", header + "rules: [{name: a, match: {qosClasses: []}}]\n", "qosClasses: Invalid value"},
		{"no priority", header + "rules: [{name: a, match: {priorityClassNames: []}}]\n", "priorityClassNames: Invalid value"},
		{"class", header + "rules: [{name: a, match: {qosClasses: [guaranteed]}}]\n", `rules[0].match.qosClasses[0]: Unsupported value: "guaranteed"`},
		{"priority", header + "rules: [{name: a, match: {priorityClassNames: [\"\"]}}]\n", "rules[0].match.priorityClassNames[0]: Invalid value"},
		{"selector", header + "rules: [{name: a, match: {podSelector: {matchExpressions: [{key: a, operator: Has}]}}}]\n", "rules[0].match.podSelector.matchExpressions[0].operator: Invalid value"},
		{"excluded and more", header + "rules: [{name: a, match: {}, exclude: true, memoryThrottlingFactor: 0.5}]\n", "rules[0].exclude: Invalid value: true: nothing is done for an excluded pod"},
		{"factor of no memory.high", header + "rules: [{name: a, match: {}, memoryHigh: Disabled, memoryThrottlingFactor: 0.5}]\n", "rules[0].memoryThrottlingFactor: Invalid value: 0.5: without memory.high"},
		{"guard of no memory.high", header + "rules: [{name: a, match: {}, memoryHigh: Disabled, stallGuard: Enabled}]\n", "rules[0].stallGuard: Invalid value"},
		{"switch", header + "rules: [{name: a, match: {}, memoryHigh: false}]\n", "memoryHigh"},
		{"other switch", header + "rules: [{name: a, match: {}, stallGuard: Off}]\n", "stallGuard"},
		{"rule factor", header + "rules: [{name: a, match: {}, memoryThrottlingFactor: 0}]\n", "rules[0].memoryThrottlingFactor: Invalid value: 0"},
		{"rule policy", header + "emulationVersion: \"1.36\"\nrules: [{name: a, match: {}, memoryReservationPolicy: Hard}]\n", "rules[0].memoryReservationPolicy: Unsupported value"},
		{"rule policy of an older release", header + "rules: [{name: a, match: {}, memoryReservationPolicy: None}]\n", `rules[0].memoryReservationPolicy: Invalid value: "None": the kubelet 1.27 has no such setting`},
		{"stall share", header + "stallGuard: {stallShare: 0}\n", "stallGuard.stallShare: Invalid value: 0: must be greater than 0 and at most 1, such as 0.3"},
		{"stall window", header + "stallGuard: {window: 1s}\n", `stallGuard.window: Invalid value: "1s": must be from 2s to 5m`},
		{"stall hold", header + "stallGuard: {hold: 9s}\n", `stallGuard.hold: Invalid value: "9s": must not be shorter than window, 10s`},
		{"reserve", header + "rails: {systemReserve: -1Gi}\n", `rails.systemReserve: Invalid value: "-1Gi"`},
		{"margin", header + "rails: {reclaimMargin: 1}\n", "rails.reclaimMargin: Invalid value: 1"},
		{"bundle without id", header + "bundlePaths: [/run/config.json]\n", `bundlePaths[0]: Invalid value: "/run/config.json": must be a clean absolute path with "<id>" in it once`},
		{"bundle with two ids", header + "bundlePaths: [/run/<id>/<id>]\n", "bundlePaths[0]: Invalid value"},
		{"relative bundle", header + "bundlePaths: [run/<id>]\n", "bundlePaths[0]: Invalid value"},
		{"bundle upwards", header + "bundlePaths: [/run/../<id>]\n", "bundlePaths[0]: Invalid value"},
		{"restore", header + "restoreOnExit: Never\n", `restoreOnExit: Unsupported value: "Never": supported values: "Auto", "Keep", "Restore"`},
		{"state", header + "stateDir: memqos\n", `stateDir: Invalid value: "memqos": must be a clean absolute path`},
		{"kubelet file", header + "kubeletConfigFile: config.yaml\n", "kubeletConfigFile: Invalid value"},
		{"too large", header + strings.Repeat("#", maxSize), "larger than"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := Decode([]byte(tc.in))
			if err == nil {
				t.Fatalf("got %+v, want an error", c)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got error %q, want it to contain %q", err, tc.want)
			}
		})
	}
}

func TestValidateReportsEveryFault(t *testing.T) {
	_, err := Decode([]byte(header + "cgroupRoot: x\ncgroupDriver: x\nmemoryThrottlingFactor: 2\n"))
	if err == nil {
		t.Fatal("want an error")
	}
	for _, field := range []string{"cgroupRoot", "cgroupDriver", "memoryThrottlingFactor"} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("error does not name %s: %v", field, err)
		}
	}
}

func TestLoad(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "absent")); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("got error %v, want one that names the file", err)
	}
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(header), 0o600); err != nil {
		t.Fatal(err)
	}
	older := func(c *MemoryQoSConfiguration) { c.EmulationVersion = "1.22" }
	for _, path := range []string{file, ""} {
		c, err := Load(path, older)
		if err != nil {
			t.Fatal(err)
		}
		if *c.MemoryThrottlingFactor != 0.8 {
			t.Errorf("%q: factor %v is not the default of the release that was laid over", path, *c.MemoryThrottlingFactor)
		}
	}
	if c, err := Load("", func(c *MemoryQoSConfiguration) { c.CgroupDriver = "openrc" }); err == nil {
		t.Errorf("an overlay is not validated: %+v", c)
	}
}

// Whatever is accepted is valid, and is accepted again with the same meaning.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(header))
	f.Add([]byte(header + "memoryThrottlingFactor: 0.5\nfeatureGates: {MemoryQoS: false}\n"))
	f.Add([]byte(header + "emulationVersion: '1.37'\nmemoryReservationPolicy: None\n"))
	f.Add([]byte(header + "mode: DryRun\nbundlePaths: []\nrails: {systemReserve: 1.5Gi, reclaimMargin: 0.05}\nstallGuard: {enabled: false, window: 5s}\n"))
	f.Add([]byte(header + full))
	f.Add([]byte(header + "emulationVersion: 1.30\nlogging: {verbosity: 3}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Decode(data)
		if err != nil {
			return
		}
		out, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode(out)
		if err != nil {
			t.Fatalf("%s\nis refused after a round trip: %v", out, err)
		}
		if diff := cmp.Diff(c, again, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("round trip (-first +second):\n%s", diff)
		}
	})
}
