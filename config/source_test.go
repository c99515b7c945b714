package config

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
)

// mount is a ConfigMap's mount as the kubelet makes it: config.yaml is a link
// into ..data, which is a link to a directory that is new with every content
// (pkg/volume/util/atomic_writer.go).
type mount struct {
	*testing.T
	dir  string
	last string
}

func newMount(t *testing.T, content string) *mount {
	m := &mount{T: t, dir: t.TempDir()}
	m.publish(content)
	m.must(os.Symlink(filepath.Join("..data", "config.yaml"), m.file()))
	return m
}

func (m *mount) file() string { return filepath.Join(m.dir, "config.yaml") }

func (m *mount) publish(content string) {
	m.Helper()
	dir, err := os.MkdirTemp(m.dir, "..2026_")
	m.must(err)
	m.must(os.WriteFile(filepath.Join(dir, "config.yaml"), []byte(content), 0o600))
	m.must(os.Symlink(filepath.Base(dir), filepath.Join(m.dir, "..data_tmp")))
	m.must(os.Rename(filepath.Join(m.dir, "..data_tmp"), filepath.Join(m.dir, "..data")))
	if m.last != "" {
		m.must(os.RemoveAll(m.last))
	}
	m.last = dir
}

func (m *mount) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

func (m *mount) open(overlays ...Overlay) *Source {
	m.Helper()
	s, _, err := Open(m.file(), overlays...)
	m.must(err)
	return s
}

// tells expects an update with a factor, or with an error that contains want, or
// none.
func (m *mount) tells(s *Source, what string, factor float64, want string) {
	m.Helper()
	u, ok := s.look()
	switch {
	case !ok && factor == 0 && want == "":
	case !ok:
		m.Errorf("%s: no update", what)
	case factor == 0 && want == "":
		m.Errorf("%s: an update: %+v", what, u)
	case want != "":
		if u.Err == nil || !strings.Contains(u.Err.Error(), want) || u.Config != nil {
			m.Errorf("%s: got %+v, want an error with %q", what, u, want)
		}
	case u.Err != nil || *u.Config.MemoryThrottlingFactor != factor:
		m.Errorf("%s: got %+v, want factor %v", what, u, factor)
	}
}

func factor(text string) string { return header + "memoryThrottlingFactor: " + text + "\n" }

func TestSource(t *testing.T) {
	m := newMount(t, factor("0.5"))
	s := m.open()
	m.tells(s, "nothing happened", 0, "")
	m.publish(factor("0.5"))
	m.tells(s, "the same content in a new directory", 0, "")
	m.publish("# why\n" + factor("0.5"))
	m.tells(s, "a comment", 0, "")
	m.publish(factor("0.6"))
	m.tells(s, "a good one", 0.6, "")
	m.publish(factor("6"))
	m.tells(s, "a bad one", 0, "memoryThrottlingFactor: Invalid value: 6")
	m.tells(s, "the same bad one", 0, "")
	m.publish(factor("7"))
	m.tells(s, "another bad one", 0, "Invalid value: 7")
	m.publish(factor("0.6"))
	m.tells(s, "the fault undone", 0.6, "")
	m.tells(s, "nothing happened", 0, "")
	m.publish(factor("0.7") + "stateDir: /var/memqos\n")
	m.tells(s, "what a running agent cannot change", 0, `stateDir: Invalid value: "/var/memqos": the agent runs with /run/memqos and cannot change it`)
	m.publish(factor("0.7"))
	m.tells(s, "a good one after it", 0.7, "")
	m.publish("")
	m.tells(s, "truncated", 0, "0 YAML documents")
}

// A file that is away for a moment is no fault; one that stays away is, once.
func TestSourceMissingFile(t *testing.T) {
	m := newMount(t, factor("0.5"))
	s := m.open()
	for range 2 { // and a second time: the patience is there again
		m.must(os.Remove(m.file()))
		for range patience - 1 {
			m.tells(s, "away for a moment", 0, "")
		}
		m.must(os.Symlink(filepath.Join("..data", "config.yaml"), m.file()))
		m.tells(s, "back again", 0, "")
	}
	m.must(os.Remove(m.file()))
	for range patience - 1 {
		m.tells(s, "away", 0, "")
	}
	m.tells(s, "away for long", 0, "no such file")
	m.tells(s, "still away", 0, "")
	m.must(os.Symlink(filepath.Join("..data", "config.yaml"), m.file()))
	m.tells(s, "back unchanged", 0.5, "")
}

// What flags set stays set.
func TestSourceOverlays(t *testing.T) {
	m := newMount(t, header)
	s := m.open(func(c *MemoryQoSConfiguration) { c.EmulationVersion = "1.22" })
	m.publish(header + "emulationVersion: \"1.30\"\nresyncPeriod: 2m\n")
	if u, ok := s.look(); !ok || u.Err != nil || u.Config.EmulationVersion != "1.22" || *u.Config.MemoryThrottlingFactor != 0.8 {
		t.Errorf("got %+v, want a configuration of 1.22", u)
	}
}

func TestOpen(t *testing.T) {
	m := newMount(t, factor("2"))
	if _, _, err := Open(m.file()); err == nil || !strings.Contains(err.Error(), m.file()) {
		t.Errorf("got %v, want an error that names the file", err)
	}
	if _, _, err := Open(filepath.Join(m.dir, "absent")); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("got %v, want an error that names the file", err)
	}
	if _, c, err := Open(""); err != nil || *c.MemoryThrottlingFactor != 0.9 {
		t.Errorf("got %v, %v, want the defaults", c, err)
	}
}

func TestWatch(t *testing.T) {
	m := newMount(t, factor("0.5"))
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		updates, ended := make(chan Update), make(chan struct{})
		s := m.open()
		go func() {
			s.Watch(ctx, func(u Update) { updates <- u })
			close(ended)
		}()
		m.publish(factor("0.6"))
		if u := <-updates; *u.Config.MemoryThrottlingFactor != 0.6 {
			t.Errorf("got %+v", u)
		}
		m.publish(factor("6"))
		if u := <-updates; u.Err == nil {
			t.Errorf("got %+v, want an error", u)
		}
		cancel()
		<-ended
	})
}

func TestValidateUpdate(t *testing.T) {
	decode := func(text string) *MemoryQoSConfiguration {
		c, err := Decode([]byte(header + text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	running := decode("")
	for _, text := range []string{
		"featureGates: {MemoryQoS: false}", "cgroupRoot: /kubelet", "cgroupDriver: systemd", "stateDir: /x",
		"metricsBindAddress: :1", "healthzBindAddress: :1", "pprofBindAddress: 127.0.0.1:1", "metricsSecure: true", "statusBindAddress: :1", "logging: {format: text}", "logging: {verbosity: 4}", "restoreOnExit: Keep", "bundlePaths: []",
	} {
		field, _, _ := strings.Cut(text, ":")
		if errs := ValidateUpdate(running, decode(text)); len(errs) != 1 || errs[0].Field != field || !strings.Contains(errs[0].Error(), "restart the agent") {
			t.Errorf("%s: got %v, want one error of %s", text, errs, field)
		}
	}
	if errs := ValidateUpdate(decode("metricsSecure: true"), decode("metricsSecure: true\nmetricsCertDir: /x")); len(errs) != 1 || errs[0].Field != "metricsCertDir" {
		t.Errorf("metricsCertDir: got %v, want one error", errs)
	}
	for _, text := range []string{
		"containerMetrics: true", "mode: DryRun", "emulationVersion: '1.37'", "memoryThrottlingFactor: 0.5", "rules: [{name: a, match: {}, exclude: true}]", "stallGuard: {enabled: false}",
		"rails: {systemReserve: 1Gi}", "kubeletConfigFile: /x", "resyncPeriod: 2m",
	} {
		if errs := ValidateUpdate(running, decode(text)); len(errs) > 0 {
			t.Errorf("%s: got %v, want it to apply at once", text, errs)
		}
	}
}
