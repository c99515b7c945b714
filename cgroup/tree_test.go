package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/memqos/memqos/cgroup/cgrouptest"
	"github.com/memqos/memqos/config"
	"github.com/memqos/memqos/memory"
)

func fixture(t *testing.T, driver config.CgroupDriver, description string) (*Tree, string) {
	t.Helper()
	dir := cgrouptest.Make(t, description)
	tree, err := OpenFixture(dir, NewLayout(driver, "/"))
	if err != nil {
		t.Fatal(err)
	}
	return tree, dir
}

// write opens a cgroup and writes a file of it.
func write(tree *Tree, cgroup string, file memory.File, v memory.Value) error {
	d, err := tree.Open(cgroup)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Write(file, v)
}

func TestValuesAndWrite(t *testing.T) {
	tree, dir := fixture(t, config.Cgroupfs, "kubepods 0 0 max 8589934592\nkubepods/burstable 4096 0 max max")
	got, err := tree.Values("kubepods/burstable")
	if err != nil {
		t.Fatal(err)
	}
	if want := "memory.min=4096 memory.low=0 memory.high=max memory.max=max"; got.String() != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, v := range []memory.Value{8192, 0, memory.Unlimited} {
		if err := write(tree, "kubepods", memory.High, v); err != nil {
			t.Fatal(err)
		}
		if got := cgrouptest.Read(t, filepath.Join(dir, "kubepods", "memory.high")); got != v.String() {
			t.Errorf("wrote %s, file holds %s", v, got)
		}
	}
}

// The container that this process is in, by its processes; those of other PID
// namespaces are shown as 0.
func TestOwn(t *testing.T) {
	const nodes = "kubepods\nkubepods/burstable\nkubepods/burstable/podx\nkubepods/burstable/podx/a\nkubepods/burstable/podx/b"
	self := strconv.Itoa(os.Getpid())
	for procs, want := range map[string]string{"0\n" + self + "\n0": "kubepods/burstable/podx/b", "0\n" + self + "0": ""} {
		tree, dir := fixture(t, config.Cgroupfs, nodes)
		cgrouptest.Write(t, filepath.Join(dir, "kubepods/burstable/podx/a/cgroup.procs"), "0\n0")
		cgrouptest.Write(t, filepath.Join(dir, "kubepods/burstable/podx/b/cgroup.procs"), procs)
		if got := tree.Own(); got != want {
			t.Errorf("among %q: %q, want %q", procs, got, want)
		}
	}
}

func TestChildren(t *testing.T) {
	tree, dir := fixture(t, config.Cgroupfs, "kubepods\nkubepods/b\nkubepods/a")
	if err := os.Symlink("/", filepath.Join(dir, "kubepods", "link")); err != nil {
		t.Fatal(err)
	}
	got, err := tree.Children("kubepods")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "b"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestGone(t *testing.T) {
	tree, _ := fixture(t, config.Cgroupfs, "kubepods")
	if _, err := tree.Values("kubepods/burstable"); !IsGone(err) {
		t.Errorf("Values: %v", err)
	}
	if _, err := tree.Children("kubepods/burstable"); !IsGone(err) {
		t.Errorf("Children: %v", err)
	}
	if _, err := tree.Stat("kubepods/burstable"); !IsGone(err) {
		t.Errorf("Stat: %v", err)
	}
	if err := write(tree, "kubepods/burstable", memory.Min, 0); !IsGone(err) {
		t.Errorf("Write: %v", err)
	}
}

// A directory that was opened is that very one: what comes under its name later is
// not written to.
func TestDirIsThatVeryCgroup(t *testing.T) {
	tree, dir := fixture(t, config.Cgroupfs, "kubepods\nkubepods/poda")
	d, err := tree.Open("kubepods/poda")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := os.RemoveAll(filepath.Join(dir, "kubepods", "poda")); err != nil {
		t.Fatal(err)
	}
	cgrouptest.Add(t, dir, "kubepods/poda 0 0 max max")
	if err := d.Write(memory.Min, 4096); !IsGone(err) {
		t.Errorf("write to a removed cgroup gave %v", err)
	}
	if got := cgrouptest.Read(t, filepath.Join(dir, "kubepods", "poda", "memory.min")); got != "0" {
		t.Errorf("the new cgroup's memory.min became %s", got)
	}
}

// A path that leads out of kubepods by a name, a link or a mount is refused.
func TestNothingLeadsOut(t *testing.T) {
	tree, dir := fixture(t, config.Cgroupfs, "kubepods\nsystem\nkubepodsX")
	for link, target := range map[string]string{"up": "../system", "absolute": filepath.Join(dir, "system"), "within": "."} {
		if err := os.Symlink(target, filepath.Join(dir, "kubepods", link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "kubepods", "victim"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "system", "memory.min"), filepath.Join(dir, "kubepods", "victim", "memory.min")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"system", "kubepodsX", "", "/", "kubepods/../system", "kubepods/up", "kubepods/absolute", "kubepods/within", "kubepods/victim"} {
		if err := write(tree, path, memory.Min, 4096); err == nil {
			t.Errorf("wrote to %q", path)
		}
	}
	for _, outside := range []string{"system", "kubepodsX"} {
		if got := cgrouptest.Read(t, filepath.Join(dir, outside, "memory.min")); got != "0" {
			t.Errorf("%s/memory.min was changed to %s", outside, got)
		}
	}
}

func TestMalformedFile(t *testing.T) {
	tree, dir := fixture(t, config.Cgroupfs, "kubepods")
	cgrouptest.Write(t, filepath.Join(dir, "kubepods", "memory.min"), "many")
	_, err := tree.Values("kubepods")
	var pathErr *os.PathError
	if !errors.As(err, &pathErr) || pathErr.Path != filepath.Join(dir, "kubepods", "memory.min") {
		t.Errorf("got %v, want an error that names the file", err)
	}
}

func TestStat(t *testing.T) {
	tree, dir := fixture(t, config.Cgroupfs, "kubepods 0 0 max max 12345")
	cgrouptest.Write(t, filepath.Join(dir, "kubepods", "memory.events"), "low 0\nhigh 7\nmax 0\noom 0\noom_kill 1\noom_group_kill 0")
	got, err := tree.Stat("kubepods")
	if err != nil {
		t.Fatal(err)
	}
	if got.GetMemory().GetUsage() != 12345 || got.GetMemoryEvents().GetHigh() != 7 || got.GetMemoryEvents().GetOomKill() != 1 {
		t.Errorf("got %v", got)
	}
}

// Opening a tree for real needs a cgroup2 file system.
func TestOpenRefusesOtherFileSystems(t *testing.T) {
	dir := cgrouptest.Make(t, "kubepods")
	if _, err := Open(dir, NewLayout(config.Cgroupfs, "/")); err == nil {
		t.Error("opened an ordinary directory")
	}
}
