package controllers

import (
	"context"
	"sync"
	"time"

	"github.com/memqos/memqos/metrics"
	"github.com/memqos/memqos/qos"
	"github.com/memqos/memqos/status"
)

const (
	// scrapeTime is how long a scrape waits for the files of the containers.
	scrapeTime = 5 * time.Second
	// scrapeAge is how old what a scrape tells may be: whoever reaches the metrics can
	// ask for them as often as he likes, and each answer is a read of every file.
	scrapeAge = 2 * time.Second
)

// scrapes answers those who scrape with one read for all who ask at about the same time.
type scrapes struct {
	read func(context.Context) []metrics.Container

	mu   sync.Mutex
	last []metrics.Container
	at   time.Time
}

func (s *scrapes) containers() []metrics.Container {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.at) > scrapeAge {
		ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
		defer cancel()
		s.last = s.read(ctx)
		s.at = time.Now()
	}
	return s.last
}

// containers is what the metrics tell of the node's containers: nothing unless the
// configuration asks for it.
func (a *agent) containers(ctx context.Context) []metrics.Container {
	if !a.surveyor.config.Load().ContainerMetrics {
		return nil
	}
	st, err := a.status(ctx, "", "")
	if err != nil {
		a.surveyor.log.Error(err, "a scrape is told of no container")
		return nil
	}
	return containersOf(st)
}

func containersOf(st *status.NodeStatus) (out []metrics.Container) {
	for i := range st.Cgroups {
		c := &st.Cgroups[i]
		if c.Level != qos.LevelContainer || c.Container == "" || c.Container == status.Sandbox || c.Actual == nil {
			continue
		}
		m := metrics.Container{Namespace: c.Namespace, Pod: c.Pod, Name: c.Container, Wanted: c.Wanted, Actual: c.Actual, Usage: c.UsageBytes, Events: c.Events}
		if p := c.Pressure; p != nil {
			m.Pressure = &metrics.Pressure{Some: float64(p.SomeTotalUsec) / 1e6, Full: float64(p.FullTotalUsec) / 1e6}
		}
		out = append(out, m)
	}
	return out
}
