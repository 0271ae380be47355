package control

import (
	"log/slog"
	"slices"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// lasting is how long members may differ before it is told: while news
// travels and tables are built they always do.
const lasting = 5 * time.Second

// agreement watches whether the members hold the same configuration and the
// same tables.
type agreement struct {
	open map[difference]spell
}

// difference is a member that holds something else than this node.
type difference struct {
	member  string
	service string // whose table differs; empty for the configuration
}

// spell is the time for which a difference has stood.
type spell struct {
	since time.Time
	told  bool
}

// differing lists the members that have differed for a while, sorted.
type differing struct {
	config []string
	tables map[string][]string // by service
}

// update compares ours with the others' reports. Tables are compared where
// both have the service.
func (a *agreement) update(log *slog.Logger, ours lb.Report, others []lb.Record, now time.Time) differing {
	before := a.open
	a.open = make(map[difference]spell)
	lasts := differing{tables: make(map[string][]string)}
	for _, d := range differences(ours, others) {
		s, known := before[d]
		if !known {
			s.since = now
		}
		if now.Sub(s.since) >= lasting {
			if d.service == "" {
				lasts.config = append(lasts.config, d.member)
			} else {
				lasts.tables[d.service] = append(lasts.tables[d.service], d.member)
			}
			if !s.told {
				log.Warn("member differs", "member", d.member, "in", d.what())
				s.told = true
			}
		}
		a.open[d] = s
	}
	for d, s := range before {
		if _, still := a.open[d]; !still && s.told {
			log.Info("member agrees again", "member", d.member, "in", d.what(), "after", now.Sub(s.since))
		}
	}
	slices.Sort(lasts.config)
	for _, members := range lasts.tables {
		slices.Sort(members)
	}
	return lasts
}

func differences(ours lb.Report, others []lb.Record) []difference {
	var all []difference
	for _, r := range others {
		if r.Report.Config != ours.Config {
			all = append(all, difference{member: r.Member})
		}
		for service, digest := range ours.Tables {
			if theirs, ok := r.Report.Tables[service]; ok && theirs != digest {
				all = append(all, difference{r.Member, service})
			}
		}
	}
	return all
}

func (d difference) what() string {
	if d.service == "" {
		return "configuration"
	}
	return "table of " + d.service
}
