package control

import (
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

const (
	// silence is how long a member counts after its last sign of life: four
	// of the heartbeats it sends twice a second. memberlist's own liveness is
	// not asked, an isolated node is slow to see that it is one.
	silence = 2 * time.Second
	// partitionHold is how long verdicts stay as they were when fewer than a
	// majority of the cluster is in sight. After it those in sight decide.
	partitionHold = 15 * time.Second
)

// judgement is what the members in sight hold of one target.
type judgement struct {
	state     lb.State // Up, Down or Unknown
	up        int      // observers that see it up
	observers int      // observers that have made up their mind
}

// inSight gives the records that count: of members heard of lately that are
// not on their way out.
func inSight(records []lb.Record, now time.Time) []lb.Record {
	var counting []lb.Record
	for _, r := range records {
		if !r.Report.Leaving && now.Sub(r.Heard) <= silence {
			counting = append(counting, r)
		}
	}
	return counting
}

// judge gives the majority's opinion on every target that some record speaks
// of. It takes more than half of the observers to hold a backend down: a tie
// leaves it in use.
func judge(records []lb.Record) map[lb.TargetID]judgement {
	verdicts := make(map[lb.TargetID]judgement)
	for _, r := range records {
		for _, o := range r.Report.Observations {
			j := verdicts[o.Target]
			switch o.State {
			case lb.Up:
				j.up++
				j.observers++
			case lb.Down:
				j.observers++
			}
			verdicts[o.Target] = j
		}
	}
	for target, j := range verdicts {
		switch {
		case j.observers == 0:
			j.state = lb.Unknown
		case 2*j.up >= j.observers:
			j.state = lb.Up
		default:
			j.state = lb.Down
		}
		verdicts[target] = j
	}
	return verdicts
}

// jury remembers what judging needs to know of the past: nothing, but while
// too few members are in sight.
type jury struct {
	size     int // members there should be
	verdicts map[lb.TargetID]judgement
	lost     time.Time // when the majority went out of sight; zero while it is in sight
}

// decide gives the verdicts that hold now, and whether they are frozen.
func (j *jury) decide(records []lb.Record, now time.Time) (verdicts map[lb.TargetID]judgement, frozen bool) {
	if len(records) >= j.size/2+1 {
		j.lost = time.Time{}
	} else if j.lost.IsZero() {
		j.lost = now
	}
	if j.lost.IsZero() || now.Sub(j.lost) >= partitionHold {
		j.verdicts = judge(records)
		return j.verdicts, false
	}
	return j.verdicts, true
}
