package page

import (
	"fmt"
	"html"
	"math"
	"strings"
	"time"

	"github.com/memqos/memqos/memory"
	"github.com/memqos/memqos/status"
)

// This is no html/template: that calls methods by reflection, so that the linker keeps
// every method of every type of the Kubernetes API, 13 MB of the agent's binary. What
// it would do beyond escaping text and quoted attributes is not needed here: nothing
// of a status stands in a script, a style or a link.

// node is a piece of HTML. It is made by el, text and join alone.
type node string

// text is a string as text.
func text(s string) node { return node(html.EscapeString(s)) }

func textf(format string, args ...any) node { return text(fmt.Sprintf(format, args...)) }

func join(all ...node) node {
	var b strings.Builder
	for _, n := range all {
		b.WriteString(string(n))
	}
	return node(b.String())
}

// attrs are names, which are constants, and values by turns.
type attrs []string

// el is an element, whose name is a constant.
func el(name string, a attrs, children ...node) node {
	var b strings.Builder
	b.WriteString("<" + name)
	for i := 0; i+1 < len(a); i += 2 {
		b.WriteString(" " + a[i] + `="` + html.EscapeString(a[i+1]) + `"`)
	}
	b.WriteString(">")
	b.WriteString(string(join(children...)))
	b.WriteString("</" + name + ">")
	return node(b.String())
}

func class(names string) attrs { return attrs{"class", names} }

// each is the nodes of a list.
func each[T any](all []T, f func(T) node) node {
	var out []node
	for _, x := range all {
		out = append(out, f(x), "\n")
	}
	return join(out...)
}

// render is the page of a status.
func render(s *status.NodeStatus) string {
	v := newView(s)
	parts := strings.NewReplacer("{{node}}", string(text(s.Node)), "{{main}}", string(v.main()))
	return parts.Replace(source) // in one pass: what is put in is not looked at again
}

func (v view) main() node {
	return el("main", attrs{"id", "main"},
		el("ul", class("facts"), v.facts()),
		v.notices(),
		el("h2", nil, text("The node")),
		el("p", class("key"), v.rail()),
		each(v.Above, func(r row) node { return v.details(r, "above", pressure(r.Pressure), files(r)) }),
		el("h2", attrs{"id", "pods", "tabindex", "-1"}, text("Pods")),
		el("p", class("key"), legend("u", "used"), each(memory.Files, func(f memory.File) node { return legend(looks[f].class, string(f)) }),
			text("The end of a bar is the greatest of its values; of a container without a limit, that of its pod."),
			text(" Beside it is memory.pressure, some and full, over 10 s.")),
		each(v.Pods, func(p pod) node {
			return v.details(p.row, "pod", pressure(p.Pressure), files(p.row), each(p.Containers, v.container))
		}),
		el("h2", nil, text("Last changes")),
		v.changes(),
		el("h2", nil, text("Last events")),
		v.events(),
	)
}

func (v view) facts() node {
	fact := func(name string, value node) node { return el("li", nil, text(name+" "), el("b", nil, value)) }
	pressure := "off"
	if v.Machine.Pressure {
		pressure = "on"
	}
	all := []node{fact("read", el("time", attrs{"datetime", v.Time.Format(time.RFC3339)}, text(v.Time.Format("15:04:05"))))}
	if a := v.Agent; a != nil {
		all = append(all, fact("memqos", text(a.Version)))
		if c := a.Configuration; c != nil {
			all = append(all, fact("emulates", text(string(c.EmulationVersion))), fact("factor", textf("%v", *c.MemoryThrottlingFactor)), fact("mode", text(string(c.Mode))))
		}
	}
	all = append(all, fact("kernel", text(v.Machine.Kernel)), fact("pressure (PSI)", text(pressure)), fact("allocatable", text(Size(memory.Value(v.AllocatableBytes)))))
	for _, c := range v.Counts {
		all = append(all, el("li", nil, verdict(c.Verdict), textf(" %d", c.N)))
	}
	return join(all...)
}

func (v view) notices() node {
	notice := func(format string, args ...any) node {
		return el("p", attrs{"class", "notice", "role", "status"}, textf(format, args...))
	}
	a := v.Agent
	if a == nil {
		return ""
	}
	var all []node
	if a.Idle != "" {
		all = append(all, notice("This node is not served: %s. %s", a.Idle, a.IdleMessage))
	}
	if a.Refused != "" {
		all = append(all, notice("A changed configuration is not in use: %s", a.Refused))
	}
	if len(a.LeftToKubelet) > 0 {
		all = append(all, notice("Left to the kubelet's own MemoryQoS: %v", a.LeftToKubelet))
	}
	if !a.Watching && a.Idle == "" {
		all = append(all, notice("The kernel does not tell of every cgroup: they are polled."))
	}
	return join(all...)
}

func (v view) rail() node {
	if v.Rail.Top == 0 {
		return textf("Protected %s", v.Rail.Sum.Human())
	}
	return textf("Protected %s of at most %s (rails.systemReserve)", v.Rail.Sum.Human(), v.Rail.Top.Human())
}

// details is a cgroup that opens.
func (v view) details(r row, kind string, inside ...node) node {
	return el("details", attrs{"class", kind, "id", r.Cgroup.Cgroup, "data-find", r.Name},
		el("summary", nil, el("span", class("name"), text(r.Name)), svg(r.Bar), el("span", class("use"), text(Size(used(r.Cgroup)))), shortPressure(r.Pressure), verdict(r.Verdict)),
		region("Files of "+r.Name, inside...))
}

func (v view) container(r row) node {
	title := []node{text(r.Name + " "), verdict(r.Verdict)}
	if r.Since != nil {
		title = append(title, el("span", class("key"), text(" for "+v.ago(*r.Since))))
	}
	all := []node{el("h3", class("name"), title...), svg(r.Bar)}
	if x := r.Relaxed; x != nil {
		all = append(all, el("p", class("notice"), textf("memory.high is raised from %s since %s. %s", x.Planned.Human(), v.ago(x.Since), x.Why)))
	}
	if x := r.Throttled; x != nil {
		all = append(all, el("p", class("key"), textf("In the last %s: %d times over memory.high, waiting for memory %.1f s, all tasks %.1f s", v.ago(x.From), x.HighEvents, float64(x.SomeUsec)/1e6, float64(x.FullUsec)/1e6)))
	}
	return join(append(all, pressure(r.Pressure), files(r))...)
}

func (v view) changes() node {
	if len(v.Recent) == 0 {
		return el("p", nil, text("None seen."))
	}
	return region("Last changes", el("table", nil, head("Ago", "Where", "File", "From", "To", "By", "Times"), el("tbody", nil, each(v.Recent, func(c recent) node {
		return el("tr", nil, el("td", class("n"), text(v.ago(c.Time))), el("td", class("name"), text(c.Where)), el("td", nil, text(string(c.File))),
			el("td", class("n"), text(c.From.Human())), el("td", class("n"), text(c.To.Human())), el("td", nil, text(string(c.By))), el("td", class("n"), textf("%d", c.Count)))
	}))))
}

func (v view) events() node {
	if len(v.Events) == 0 {
		return el("p", nil, text("None seen."))
	}
	return region("Last events", el("table", nil, head("Ago", "Where", "What"), el("tbody", nil, each(v.Events, func(e event) node {
		return el("tr", nil, el("td", class("n"), text(v.ago(e.Time))), el("td", class("name"), text(e.Where)), el("td", class("why"), text(e.What)))
	}))))
}

// shortPressure is the pressure in the line of a cgroup.
func shortPressure(p *status.Pressure) node {
	if p == nil {
		return el("span", class("psi"))
	}
	return el("span", attrs{"class", "psi key", "title", "memory.pressure: the share of the last 10 s in which some, or all (full), of its tasks waited for memory"},
		textf("some\u00a0%v\u00a0%% full\u00a0%v\u00a0%%", p.SomeAvg10, p.FullAvg10))
}

func pressure(p *status.Pressure) node {
	if p == nil {
		return ""
	}
	part := func(avg float64, total uint64) string {
		return fmt.Sprintf("%v %% of the last 10 s, %.1f s in all", avg, float64(total)/1e6)
	}
	return el("p", class("key"), textf("memory.pressure: some %s; full %s", part(p.SomeAvg10, p.SomeTotalUsec), part(p.FullAvg10, p.FullTotalUsec)))
}

// region scrolls by itself, by keyboard too.
func region(label string, inside ...node) node {
	return el("div", attrs{"class", "wide", "role", "region", "tabindex", "0", "aria-label", label}, inside...)
}

func head(names ...string) node {
	return el("thead", nil, el("tr", nil, each(names, func(name string) node { return el("th", attrs{"scope", "col"}, text(name)) })))
}

func verdict(v status.Verdict) node { return el("span", class("v "+string(v)), text(string(v))) }

func legend(kind, name string) node {
	swatch := el("svg", attrs{"class", "sw", "viewBox", "0 0 1 1", "aria-hidden", "true"}, el("rect", attrs{"class", kind, "width", "1", "height", "1"}))
	return el("span", class("legend"), swatch, text(name))
}

// looks are of the mark of each file: what protects reaches out of the bar below, what
// limits above, so that neither hides the other.
var looks = map[memory.File]struct {
	class string
	y     int64
}{memory.Min: {"m", 6}, memory.Low: {"l", 6}, memory.High: {"h", 0}, memory.Max: {"x", 0}}

func svg(b bar) node {
	rect := func(kind string, x, y, width, height int64, inside ...node) node {
		return el("rect", attrs{"class", kind, "x", fmt.Sprint(x), "y", fmt.Sprint(y), "width", fmt.Sprint(width), "height", fmt.Sprint(height)}, inside...)
	}
	parts := []node{rect("t", 0, 4, 1000, 12), rect("u", 0, 4, b.Usage, 12)}
	for _, m := range b.Marks {
		look := looks[m.File]
		parts = append(parts, rect(look.class, m.At, look.y, markWidth, 14, el("title", nil, text(m.Text))))
	}
	return el("svg", attrs{"class", "bar", "viewBox", "0 0 1000 20", "preserveAspectRatio", "none", "role", "img", "aria-label", b.Text}, parts...)
}

func files(r row) node {
	return el("table", attrs{"data-cgroup", r.Cgroup.Cgroup}, head("File", "Holds", "Wanted", "Why"), el("tbody", nil, each(r.Files, func(c cell) node {
		kind := "n"
		if c.Differs {
			kind = "n differs"
		}
		return el("tr", nil, el("th", attrs{"scope", "row"}, text(string(c.File))), el("td", attrs{"class", kind, "data-file", string(c.File), "title", c.Exact}, text(c.Has)),
			el("td", class("n"), text(c.Want)), el("td", class("why"), text(c.Reason)))
	})))
}

func used(c *status.Cgroup) memory.Value {
	return memory.Value(min(c.UsageBytes, math.MaxInt64-1))
}

// ago is how long before the status a time was.
func (v view) ago(t time.Time) string {
	d := v.Time.Sub(t).Round(time.Second)
	if d < time.Minute {
		return max(d, 0).String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}
