package testnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// upstreamModule is what of a go.mod decides how its module is built from
// outside; the format is that of "go mod edit -json".
type upstreamModule struct {
	Require []struct{ Path, Version string }
	Replace []struct {
		Old, New struct{ Path, Version string }
	}
}

// MakeModule writes hack/kubernetes/vVERSION with a pinned and checksummed
// module that Kubernetes' components can be built from.
func MakeModule(ctx context.Context, version string, log io.Writer) error {
	if minor(version) == 0 {
		return fmt.Errorf("kubernetes version %q: want MAJOR.MINOR.PATCH", version)
	}
	root, err := sourceRoot(ctx)
	if err != nil {
		return err
	}
	p := newProgress(log)
	done := p.stage("downloading k8s.io/kubernetes v%s", version)
	output, err := commandOutput(ctx, append(goEnv, "GOFLAGS=-mod=mod"), "go", "-C", os.TempDir(), "mod", "download", "-json", "k8s.io/kubernetes@v"+version)
	done()
	if err != nil {
		return fmt.Errorf("download Kubernetes %s: %w", version, err)
	}
	var downloaded struct{ GoMod string }
	if err := json.Unmarshal(output, &downloaded); err != nil {
		return fmt.Errorf("read where the module went: %w", err)
	}
	output, err = commandOutput(ctx, nil, "go", "mod", "edit", "-json", downloaded.GoMod)
	if err != nil {
		return fmt.Errorf("read the go.mod of Kubernetes %s: %w", version, err)
	}
	var upstream upstreamModule
	if err := json.Unmarshal(output, &upstream); err != nil {
		return fmt.Errorf("read the go.mod of Kubernetes %s: %w", version, err)
	}

	dir := filepath.Join(root, "hack/kubernetes/v"+version)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), wrapperModule(version, upstream), 0o644); err != nil {
		return err
	}
	defer p.stage("resolving %s", dir)()
	tidy := []string{"go", "-C", dir, "mod", "tidy"}
	first := command(ctx, append(goEnv, "GOFLAGS=-mod=mod"), tidy...)
	if first == nil {
		return nil
	}
	// Old staging modules are not in the checksum database.
	p.printf("trying without the checksum database: %v", first)
	second := command(ctx, append(goEnv, "GOFLAGS=-mod=mod", "GONOSUMDB=k8s.io/*"), tidy...)
	if second == nil {
		return nil
	}
	return errors.Join(first, second)
}

// wrapperModule renders a go.mod that requires Kubernetes and replaces its
// staging modules, local directories there, by what was published of them.
func wrapperModule(version string, upstream upstreamModule) []byte {
	_, rest, _ := strings.Cut(version, ".")
	staging := "v0." + rest
	required := make(map[string]bool)
	for _, r := range upstream.Require {
		required[r.Path] = true
	}
	var replace []string
	for _, r := range upstream.Replace {
		switch {
		case !strings.HasPrefix(r.New.Path, "./"):
			replace = append(replace, strings.TrimSpace(r.Old.Path+" "+r.Old.Version)+" => "+r.New.Path+" "+r.New.Version)
		case required[r.Old.Path]: // samples are not, and some were never published
			replace = append(replace, r.Old.Path+" => "+r.Old.Path+" "+staging)
		}
	}
	slices.Sort(replace)

	var out strings.Builder
	fmt.Fprintf(&out, "// Kubernetes %[1]s for the test node. Made by: testnode module %[1]s\n", version)
	fmt.Fprintf(&out, "module github.com/memqos/memqos/hack/kubernetes/v%s\n\ngo 1.26.0\n\n", version)
	fmt.Fprintf(&out, "require k8s.io/kubernetes v%s\n\ntool (\n", version)
	for _, component := range componentsOf(version) {
		out.WriteString("\tk8s.io/kubernetes/cmd/" + component + "\n")
	}
	out.WriteString(")\n\nreplace (\n")
	for _, line := range replace {
		out.WriteString("\t" + line + "\n")
	}
	out.WriteString(")\n")
	return []byte(out.String())
}

// componentsOf are what can be built of a version. The API server of releases
// before 1.24 needs generated code that the module does not have.
func componentsOf(version string) []string {
	if minor(version) < 24 {
		return []string{"kubelet"}
	}
	return []string{"kubelet", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}
}
