package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const usage = `usage: workload sleep
       workload limits           print memory.min, low, high and max of its own cgroup first of all, then sleep
       workload alloc SIZE       touch SIZE of anonymous memory gradually, then sleep
       workload hot SIZE         likewise, then touch it again and again
       workload cache FILE SIZE  write SIZE to FILE, read it again and again
       workload map FILE SIZE PAUSE  write SIZE to FILE, map it, look at its pages in random order, again after
                                 each PAUSE (such as 15s), and print the time and the major faults of each pass
       workload fill FILE SIZE   write SIZE to FILE and end
       workload await FILE SIZE  once FILE is there, as alloc
       workload later FILE SIZE  once FILE is there, as fill
       workload spin             compute
       workload build FILE SIZE  run programs that touch SIZE and write as much to FILE, one after the other
SIZE takes the suffixes Ki, Mi and Gi. SIGTERM and SIGINT end every form.`

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		os.Exit(0)
	}()
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
	if len(os.Args) > 1 && slices.Contains([]string{"fill", "compile", "later"}, os.Args[1]) {
		return
	}
	select {}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "sleep":
		return nil
	case len(args) == 1 && args[0] == "limits":
		return printLimits()
	case len(args) == 2 && args[0] == "alloc":
		size, err := parseSize(args[1])
		if err != nil {
			return err
		}
		allocate(size)
		return nil
	case len(args) == 2 && args[0] == "hot":
		size, err := parseSize(args[1])
		if err != nil {
			return err
		}
		allocate(size)
		for {
			touch()
			time.Sleep(100 * time.Millisecond) // for others on an emulated processor
		}
	case len(args) == 1 && args[0] == "spin":
		for {
			held = append(held[:0], []byte{1})
		}
	case len(args) == 4 && args[0] == "map":
		size, err := parseSize(args[2])
		if err != nil {
			return err
		}
		pause, err := time.ParseDuration(args[3])
		if err != nil {
			return err
		}
		return lookUp(args[1], size, pause)
	case len(args) == 3:
		size, err := parseSize(args[2])
		if err != nil {
			return err
		}
		return runOn(args[0], args[1], size)
	}
	return fmt.Errorf("cannot %q\n%s", strings.Join(args, " "), usage)
}

// runOn runs the forms that have a file and a size.
func runOn(form, path string, size int) error {
	switch form {
	case "cache":
		return readAgain(path, size)
	case "fill":
		return write(path, size)
	case "compile": // what build runs
		allocate(size)
		return write(path, size)
	case "await":
		await(path)
		allocate(size)
		return nil
	case "later":
		await(path)
		return write(path, size)
	case "build":
		for {
			if err := exec.Command("/proc/self/exe", "compile", path, strconv.Itoa(size)).Run(); err != nil {
				return err
			}
			time.Sleep(time.Second)
		}
	}
	return fmt.Errorf("cannot %q\n%s", form, usage)
}

// await waits until a file is there.
func await(path string) {
	for {
		if _, err := os.Stat(path); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// parseSize returns bytes.
func parseSize(s string) (int, error) {
	shift := 0
	for suffix, bits := range map[string]int{"Ki": 10, "Mi": 20, "Gi": 30} {
		if number, ok := strings.CutSuffix(s, suffix); ok {
			s, shift = number, bits
			break
		}
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("size: %w", err)
	}
	return int(n) << shift, nil
}

func printLimits() error {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	path, ok := strings.CutPrefix(strings.TrimSpace(string(self)), "0::")
	if !ok {
		return fmt.Errorf("cgroup v2 expected, /proc/self/cgroup has %q", self)
	}
	for _, name := range []string{"memory.min", "memory.low", "memory.high", "memory.max"} {
		value, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", path, name))
		if err != nil {
			return err
		}
		fmt.Printf("%s %s", name, value)
	}
	return nil
}

var held [][]byte // keeps what was allocated alive

func allocate(size int) {
	const step = 1 << 20
	start := time.Now()
	for done := 0; done < size; done += step {
		block := make([]byte, min(step, size-done))
		for i := 0; i < len(block); i += os.Getpagesize() {
			block[i] = 1
		}
		held = append(held, block)
		fmt.Printf("allocated %d bytes after %.1fs\n", done+len(block), time.Since(start).Seconds())
	}
}

func touch() {
	for _, block := range held {
		for i := 0; i < len(block); i += os.Getpagesize() {
			block[i]++
		}
	}
}

func write(path string, size int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for done := 0; done < size; done += len(block) {
		if _, err := f.Write(block[:min(len(block), size-done)]); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	fmt.Printf("wrote %d bytes\n", size)
	return f.Close()
}

func readAgain(path string, size int) error {
	if err := write(path, size); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	for {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return errors.Join(err, f.Close())
		}
		if _, err := io.Copy(io.Discard, f); err != nil {
			return errors.Join(err, f.Close())
		}
		time.Sleep(time.Second)
	}
}

// lookUp is a program whose working set is a file, as that of a database.
func lookUp(path string, size int, pause time.Duration) error {
	if err := write(path, size); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil { // what is dirty cannot be reclaimed
		return err
	}
	data, err := syscall.Mmap(int(f.Fd()), 0, size, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return err
	}
	if err := syscall.Madvise(data, syscall.MADV_RANDOM); err != nil { // no readahead: each miss is a fault
		return err
	}
	faults := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			panic(err)
		}
		return u.Majflt
	}
	sum := byte(0)
	for pass := 0; ; pass++ {
		start, before := time.Now(), faults()
		for _, page := range rand.Perm(size / os.Getpagesize()) {
			sum += data[page*os.Getpagesize()]
		}
		fmt.Printf("pass %d took %d ms and %d major faults (%d)\n", pass, time.Since(start).Milliseconds(), faults()-before, sum)
		time.Sleep(pause)
	}
}
