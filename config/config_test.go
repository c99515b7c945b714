package config

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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
		{"port", header + "healthzBindAddress: \":99999\"\n", "healthzBindAddress: Invalid value"},
		{"log format", header + "logging: {format: xml}\n", "logging.format: Unsupported value"},
		{"verbosity", header + "logging: {verbosity: 11}\n", "logging.verbosity: Invalid value"},
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
		if diff := cmp.Diff(c, again); diff != "" {
			t.Fatalf("round trip (-first +second):\n%s", diff)
		}
	})
}
