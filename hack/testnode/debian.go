package testnode

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// hostPackages are the Debian packages that the host itself needs.
var hostPackages = []string{
	"busybox-static", "debootstrap", "e2fsprogs", "gcc", "kmod", "libc6-dev", "qemu-system-x86", "xz-utils",
}

// ensureHostPackages installs what is missing, or says how to.
func ensureHostPackages(ctx context.Context, c cache, wanted []string) error {
	missing, err := missingPackages(ctx, wanted)
	if err != nil || len(missing) == 0 {
		return err
	}
	install := append([]string{"apt-get", "install", "--yes", "--no-install-recommends"}, missing...)
	if os.Geteuid() != 0 {
		return fmt.Errorf("missing Debian packages; run: sudo %s", strings.Join(install, " "))
	}
	unlock, err := lock(ctx, filepath.Join(c.root, "apt.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if missing, err = missingPackages(ctx, wanted); err != nil || len(missing) == 0 {
		return err
	}
	defer c.log.stage("installing Debian packages: %s", strings.Join(missing, " "))()
	env := []string{"DEBIAN_FRONTEND=noninteractive"}
	install = slices.Insert(install, 1, "-o", "DPkg::Lock::Timeout=300")
	// The lists may be absent or name versions that the mirror no longer has.
	if command(ctx, env, install...) == nil {
		return nil
	}
	if err := command(ctx, env, "apt-get", "update"); err != nil {
		return fmt.Errorf("update the Debian package lists: %w", err)
	}
	if err := command(ctx, env, install...); err != nil {
		return fmt.Errorf("install Debian packages: %w", err)
	}
	return nil
}

func missingPackages(ctx context.Context, wanted []string) ([]string, error) {
	if !exists("/usr/bin/dpkg-query") {
		return nil, errors.New("the test node needs a Debian host: there is no dpkg")
	}
	var missing []string
	for _, name := range wanted {
		status, err := commandOutput(ctx, nil, "dpkg-query", "--show", "--showformat=${db:Status-Status}", name)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil || string(status) != "installed" {
			missing = append(missing, name)
		}
	}
	return missing, nil
}

// aptSource is one archive that the host installs from.
type aptSource struct {
	uri    string
	suites []string
}

// hostArchives reads the host's apt configuration: the archive of its Debian
// release, and that of the security updates ("" if it has none).
func hostArchives() (archive, security string, err error) {
	var sources []aptSource
	for _, pattern := range []string{"/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return "", "", err
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				return "", "", fmt.Errorf("read apt sources: %w", err)
			}
			if filepath.Ext(path) == ".sources" {
				sources = append(sources, parseDeb822Sources(data)...)
			} else {
				sources = append(sources, parseListSources(data)...)
			}
		}
	}
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", "", fmt.Errorf("find the host's release: %w", err)
	}
	codename := osReleaseField(release, "VERSION_CODENAME")
	archive, security = pickArchives(sources, codename)
	if archive == "" {
		return "", "", fmt.Errorf("no archive of Debian %q among the host's apt sources", codename)
	}
	return archive, security, nil
}

func pickArchives(sources []aptSource, codename string) (archive, security string) {
	for _, source := range sources {
		switch {
		case archive == "" && slices.Contains(source.suites, codename):
			archive = source.uri
		case security == "" && slices.Contains(source.suites, codename+"-security"):
			security = source.uri
		}
	}
	return archive, security
}

func osReleaseField(data []byte, name string) string {
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			return strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	return ""
}

// parseListSources parses the one-line format: "deb [options] uri suite components".
func parseListSources(data []byte) []aptSource {
	var sources []aptSource
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb ")
		if !ok {
			continue
		}
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			_, rest, _ = strings.Cut(rest, "]")
		}
		if fields := strings.Fields(rest); len(fields) >= 2 {
			sources = append(sources, aptSource{strings.TrimSuffix(fields[0], "/"), fields[1:2]})
		}
	}
	return sources
}

// parseDeb822Sources parses stanzas of "Field: value" with continuation lines.
func parseDeb822Sources(data []byte) []aptSource {
	var sources []aptSource
	fields, last := map[string][]string{}, ""
	flush := func() {
		disabled := slices.Equal(fields["enabled"], []string{"no"})
		if slices.Contains(fields["types"], "deb") && !disabled {
			for _, uri := range fields["uris"] {
				sources = append(sources, aptSource{strings.TrimSuffix(uri, "/"), fields["suites"]})
			}
		}
		fields, last = map[string][]string{}, ""
	}
	scanner := bufio.NewScanner(bytes.NewReader(data))
	for scanner.Scan() {
		line := scanner.Text()
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			flush()
		case line[0] == ' ' || line[0] == '\t':
			fields[last] = append(fields[last], strings.Fields(line)...)
		default:
			name, value, _ := strings.Cut(line, ":")
			last = strings.ToLower(name)
			fields[last] = strings.Fields(value)
		}
	}
	flush()
	return sources
}

// debianKeyring is where Debian keeps its archive keys; apt needs it named when
// the host's own sources name it too.
const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// apt is an apt of its own: lists and sources of one release, in a directory,
// with the host's proxy settings and keys.
type apt struct {
	dir     string
	options []string
}

func newApt(ctx context.Context, dir, release string) (*apt, error) {
	archive, security, err := hostArchives()
	if err != nil {
		return nil, err
	}
	for _, sub := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	option := ""
	if exists(debianKeyring) {
		option = "[signed-by=" + debianKeyring + "] "
	}
	sources := fmt.Sprintf("deb %s%s %s main\n", option, archive, release)
	if security != "" && release != "sid" { // sid has no security archive
		sources += fmt.Sprintf("deb %s%s %s-security main\n", option, security, release)
	}
	files := map[string]string{"sources.list": sources, "status": ""}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return nil, err
		}
	}
	a := &apt{dir: dir, options: []string{
		"-o", "Dir::Etc::SourceList=" + filepath.Join(dir, "sources.list"),
		"-o", "Dir::Etc::SourceParts=/dev/null",
		"-o", "Dir::State::Lists=" + filepath.Join(dir, "lists"),
		"-o", "Dir::State::Status=" + filepath.Join(dir, "status"),
		"-o", "Dir::Cache=" + filepath.Join(dir, "cache"),
		"-o", "APT::Sandbox::User=root", // its own user cannot enter our directory
		"-o", "Acquire::Languages=none",
	}}
	if err := command(ctx, nil, a.argv("apt-get", "update")...); err != nil {
		return nil, fmt.Errorf("read the package lists of %s: %w", release, err)
	}
	return a, nil
}

func (a *apt) argv(tool string, args ...string) []string {
	return slices.Concat([]string{tool}, a.options, args)
}

// unpack downloads a package and unpacks it, without installing it, into dir.
func (a *apt) unpack(ctx context.Context, name, dir string) error {
	fetch := append([]string{"env", "--chdir", a.dir}, a.argv("apt-get", "--quiet", "download", name)...)
	if err := command(ctx, nil, fetch...); err != nil {
		return fmt.Errorf("download package %s: %w", name, err)
	}
	files, err := filepath.Glob(filepath.Join(a.dir, name+"_*.deb"))
	if err != nil {
		return err
	}
	if len(files) != 1 {
		return fmt.Errorf("download package %s: %d files, want 1", name, len(files))
	}
	if err := command(ctx, nil, "dpkg-deb", "--extract", files[0], dir); err != nil {
		return fmt.Errorf("unpack package %s: %w", name, err)
	}
	return nil
}

// dependencies returns what a package depends on.
func (a *apt) dependencies(ctx context.Context, name string) ([]string, error) {
	output, err := commandOutput(ctx, nil, a.argv("apt-cache", "depends", name)...)
	if err != nil {
		return nil, fmt.Errorf("read what %s depends on: %w", name, err)
	}
	return parseDepends(string(output)), nil
}

// parseDepends parses what "apt-cache depends" prints: "  Depends: name", with a
// bar before the word if it is one of several alternatives.
func parseDepends(output string) []string {
	var names []string
	for line := range strings.Lines(output) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok {
			names = append(names, name)
		}
	}
	return names
}
