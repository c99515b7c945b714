package testnode

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// goEnv makes a build depend on its module alone: whatever GOFLAGS or a
// workspace says on this machine, the checksums decide.
var goEnv = []string{"GOFLAGS=-mod=readonly", "GOWORK=off", "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64"}

// goBuild builds one main package of the module in dir to the file output.
func goBuild(ctx context.Context, dir, pkg, output, ldflags string) error {
	err := command(ctx, goEnv, "go", "build", "-C", dir, "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w "+ldflags, "-o", output, pkg)
	if err != nil {
		return fmt.Errorf("build %s: %w", pkg, err)
	}
	return nil
}

// sourceRoot is the directory of the checkout that the running program's module
// is built from: the nested modules beneath hack cannot be embedded.
func sourceRoot(ctx context.Context) (string, error) {
	output, err := commandOutput(ctx, []string{"GOWORK=off"}, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/memqos/memqos")
	if err != nil {
		return "", fmt.Errorf("find the sources (run from inside the checkout): %w", err)
	}
	return strings.TrimSpace(string(output)), nil
}

// nestedModule returns the inputs of a build from a module apart.
func nestedModule(dir string) ([]string, error) {
	inputs := append([]string{runtime.Version()}, goEnv...)
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		inputs = append(inputs, string(data))
	}
	return inputs, nil
}

// kubernetes returns the path of a component's binary, such as "kubelet".
func (c cache) kubernetes(ctx context.Context, root, version, component string) (string, error) {
	module := filepath.Join(root, "hack/kubernetes/v"+version)
	inputs, err := nestedModule(module)
	if err != nil {
		return "", fmt.Errorf("no module for Kubernetes %s (make one with: testnode module %s): %w", version, version, err)
	}
	ldflags, err := versionFlags(version)
	if err != nil {
		return "", err
	}
	dir, err := c.artefact(ctx, component+"-"+version, append(inputs, ldflags), func(ctx context.Context, dir string) error {
		binary := filepath.Join(dir, component)
		if err := goBuild(ctx, module, "k8s.io/kubernetes/cmd/"+component, binary, ldflags); err != nil {
			return err
		}
		if component != "kubelet" {
			return nil
		}
		return makeKubeletDisk(ctx, dir, binary)
	})
	return filepath.Join(dir, component), err
}

// makeKubeletDisk wraps the binary as a disk: it is too large to copy on boot.
func makeKubeletDisk(ctx context.Context, dir, binary string) error {
	contents := filepath.Join(dir, "contents")
	if err := os.Mkdir(contents, 0o755); err != nil {
		return err
	}
	if err := os.Link(binary, filepath.Join(contents, "kubelet")); err != nil {
		return err
	}
	if err := makeDisk(ctx, filepath.Join(dir, "kubelet.img"), contents, "300M"); err != nil {
		return err
	}
	return removeTree(contents)
}

// versionFlags sets what the components report as their version.
func versionFlags(version string) (string, error) {
	parts := strings.Split(version, ".")
	if len(parts) != 3 {
		return "", fmt.Errorf("kubernetes version %q: want MAJOR.MINOR.PATCH", version)
	}
	var flags []string
	// The second is what the aggregator answers at /version, by which helm tells
	// whether a chart is for this cluster.
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		flags = append(flags, fmt.Sprintf("-X %[1]s.gitVersion=v%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s",
			pkg, version, parts[0], parts[1]))
	}
	return strings.Join(flags, " "), nil
}

// etcd returns the path of the etcd binary.
func (c cache) etcd(ctx context.Context, root string) (string, error) {
	module := filepath.Join(root, "hack/etcd")
	inputs, err := nestedModule(module)
	if err != nil {
		return "", err
	}
	dir, err := c.artefact(ctx, "etcd", inputs, func(ctx context.Context, dir string) error {
		return goBuild(ctx, module, "go.etcd.io/etcd/server/v3", filepath.Join(dir, "etcd"), "")
	})
	return filepath.Join(dir, "etcd"), err
}

// guest returns the path of the guest agent's binary.
func (c cache) guest(ctx context.Context, root string) (string, error) {
	inputs, err := sources(filepath.Join(root, "hack/testnode/guest"))
	if err != nil {
		return "", err
	}
	dir, err := c.artefact(ctx, "guest", append(inputs, runtime.Version()), func(ctx context.Context, dir string) error {
		return goBuild(ctx, root, "./hack/testnode/guest", filepath.Join(dir, "guest"), "")
	})
	return filepath.Join(dir, "guest"), err
}

// images returns the path of a docker-archive with every image of the node.
func (c cache) images(ctx context.Context, root string) (string, error) {
	dir := filepath.Join(root, "hack/testnode/images")
	var inputs []string
	for _, sub := range []string{"pause", "limits", "workload"} {
		more, err := sources(filepath.Join(dir, sub))
		if err != nil {
			return "", err
		}
		inputs = append(inputs, more...)
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return "", err
	}
	inputs = append(inputs, string(busybox), imageRecipe, runtime.Version())
	built, err := c.artefact(ctx, "images", inputs, func(ctx context.Context, built string) error {
		return buildImages(ctx, built, root, dir, busybox)
	})
	return filepath.Join(built, "images.tar"), err
}

// sources returns the contents of a directory's source files, tests excepted.
func sources(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var contents []string
	for _, entry := range entries {
		extension := filepath.Ext(entry.Name())
		if strings.HasSuffix(entry.Name(), "_test.go") || !slices.Contains([]string{".go", ".c"}, extension) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			return nil, err
		}
		contents = append(contents, string(data))
	}
	return contents, nil
}
