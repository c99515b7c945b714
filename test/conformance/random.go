package conformance

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/memqos/memqos/hack/testnode"
)

// RandomPods is the most that Random makes: how many fit on the test node.
const RandomPods = 20

// Random makes n pods from a seed, the same ones for the same seed and release, as
// manifests. All of them can run on the test node at once: a limit leaves a
// runtime what it needs to start a container, and the requests add up to less
// than 1.5 GiB and 0.4 processors. They use what the pods of pods.yaml use, its
// RuntimeClass too.
//
// Records keep the seed and not the pods: what changes the pods of a seed makes
// the records worthless.
func Random(seed uint64, kubelet string, n int) ([]byte, error) {
	minor, err := minorOf(kubelet)
	if err != nil {
		return nil, err
	}
	g := generator{Rand: rand.New(rand.NewPCG(seed, 0)), minor: minor}
	out := []string{"apiVersion: v1\nkind: Namespace\nmetadata: {name: random}\n"}
	for i := range n {
		manifest, err := yaml.Marshal(g.pod(i))
		if err != nil {
			return nil, err
		}
		out = append(out, string(manifest))
	}
	return []byte(strings.Join(out, "---\n")), nil
}

func minorOf(version string) (int, error) {
	parts := strings.Split(version, ".")
	if len(parts) != 3 {
		return 0, fmt.Errorf("kubernetes version %q: want MAJOR.MINOR.PATCH", version)
	}
	return strconv.Atoi(parts[1])
}

type generator struct {
	*rand.Rand
	minor int // of the kubelet: what it does not know is not made
}

func (g generator) oneIn(n int) bool { return g.IntN(n) == 0 }

// pod makes the i-th pod. The class goes by turns, so that none is missing.
func (g generator) pod(i int) *corev1.Pod {
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "random", Name: fmt.Sprintf("pod-%02d", i)},
	}
	p.Spec.TerminationGracePeriodSeconds = new(int64)
	// Setting up a network costs an emulated node seconds.
	p.Spec.HostNetwork = !g.oneIn(10)
	if g.oneIn(6) {
		share := true
		p.Spec.ShareProcessNamespace = &share
	}
	if g.oneIn(5) {
		class := "with-overhead"
		p.Spec.RuntimeClassName = &class
	}
	resources := g.burstable
	switch i % 5 {
	case 0:
		resources = g.guaranteed
	case 1:
		resources = func() corev1.ResourceRequirements { return corev1.ResourceRequirements{} }
	}
	for j := range 1 + g.IntN(2) {
		p.Spec.Containers = append(p.Spec.Containers, running(fmt.Sprintf("app-%d", j), resources()))
	}
	if i%5 == 2 {
		c := running("mib", corev1.ResourceRequirements{Requests: memoryOf(resource.MustParse("1Mi"))})
		p.Spec.Containers = append(p.Spec.Containers, c)
	}
	if g.minor >= 29 && g.oneIn(3) {
		c, always := running("sidecar", resources()), corev1.ContainerRestartPolicyAlways
		c.RestartPolicy = &always
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	}
	if g.oneIn(4) {
		p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{
			Name: "init", Image: testnode.BusyboxImage, ImagePullPolicy: corev1.PullNever, Command: []string{"true"}, Resources: resources(),
		})
	}
	if g.minor >= 34 && i%5 > 2 && g.oneIn(3) {
		p.Spec.Resources = g.podLevel(p)
	}
	return p
}

func running(name string, r corev1.ResourceRequirements) corev1.Container {
	return corev1.Container{Name: name, Image: testnode.PauseImage, ImagePullPolicy: corev1.PullNever, Resources: r}
}

const (
	mib = 1 << 20
	// minLimit: below some 12Mi runc cannot start a container.
	minLimit = 16 * mib
)

func (g generator) guaranteed() corev1.ResourceRequirements {
	list := memoryOf(g.quantity(minLimit, 8*mib))
	list[corev1.ResourceCPU] = resource.MustParse("40m")
	return corev1.ResourceRequirements{Limits: list}
}

// burstable resources may be none at all: a pod of only such containers is
// BestEffort.
func (g generator) burstable() corev1.ResourceRequirements {
	var r corev1.ResourceRequirements
	switch g.IntN(6) {
	case 0:
	case 1:
		r.Requests = memoryOf(resource.MustParse([]string{"0", "1", "4095", "4096", "4097", "1500m"}[g.IntN(6)]))
	case 2:
		r.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1m")}
	default:
		r.Requests = memoryOf(g.quantity(1, 24*mib))
	}
	switch g.IntN(4) {
	case 0:
	case 1: // above what the node has
		r.Limits = memoryOf(g.quantity(8<<30, 1<<40))
		if _, ok := r.Requests[corev1.ResourceMemory]; !ok {
			r.Requests = memoryOf(g.quantity(1, 24*mib)) // not the limit
		}
	default:
		request := r.Requests[corev1.ResourceMemory]
		r.Limits = memoryOf(g.quantity(max(minLimit, request.Value()), 16*mib))
	}
	return r
}

// podLevel makes pod-level resources over those of the containers.
func (g generator) podLevel(p *corev1.Pod) *corev1.ResourceRequirements {
	var request, limit int64
	for _, containers := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range containers {
			r := &containers[i].Resources
			if q, ok := r.Requests[corev1.ResourceMemory]; ok {
				request += q.Value()
			} else {
				request += r.Limits.Memory().Value()
			}
			limit = max(limit, r.Limits.Memory().Value())
		}
	}
	requested := g.quantity(max(request, 1), 8*mib)
	r := &corev1.ResourceRequirements{Requests: memoryOf(requested)}
	if !g.oneIn(4) {
		r.Limits = memoryOf(g.quantity(max(limit, requested.Value(), minLimit), 32*mib))
	}
	return r
}

// quantity is of n up to n + above bytes, and written in one of the ways in which
// people do.
func (g generator) quantity(n, above int64) resource.Quantity {
	n += g.Int64N(above)
	switch g.IntN(4) {
	case 0: // up, to a whole Mi
		return resource.MustParse(fmt.Sprintf("%dMi", (n+mib-1)/mib))
	case 1: // up, to a whole k
		return resource.MustParse(fmt.Sprintf("%dk", (n+999)/1000))
	case 2: // a fraction of a byte more
		return resource.MustParse(fmt.Sprintf("%d.5", n))
	}
	return resource.MustParse(strconv.FormatInt(n, 10))
}

func memoryOf(q resource.Quantity) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceMemory: q}
}
