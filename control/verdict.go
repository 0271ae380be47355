package control

import (
	"slices"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

const (
	// silence is how long a member counts after its last sign of life: four
	// of the heartbeats it sends twice a second. memberlist's own liveness is
	// not asked, an isolated node is slow to see that it is one.
	silence = 2 * time.Second
	// PartitionHold is how long verdicts stay as they were when fewer than a
	// majority of the cluster is in sight. After it those in sight decide.
	PartitionHold = 15 * time.Second
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

// judge gives the majority's opinion on each of targets, which are sorted as
// the records' observations are. It takes more than half of the observers to
// hold a backend down: a tie leaves it in use.
func judge(targets []lb.TargetID, records []lb.Record) []judgement {
	verdicts := make([]judgement, len(targets))
	for _, r := range records {
		i := 0
		for _, o := range r.Report.Observations {
			for i < len(targets) && targets[i] < o.Target {
				i++
			}
			if i == len(targets) || targets[i] != o.Target {
				continue // a question that only others ask
			}
			switch o.State {
			case lb.Up:
				verdicts[i].up++
				verdicts[i].observers++
			case lb.Down:
				verdicts[i].observers++
			}
		}
	}
	for i := range verdicts {
		switch j := &verdicts[i]; {
		case j.observers == 0:
			j.state = lb.Unknown
		case 2*j.up >= j.observers:
			j.state = lb.Up
		default:
			j.state = lb.Down
		}
	}
	return verdicts
}

// jury remembers what judging needs to know of the past: nothing, but while
// too few members are in sight.
type jury struct {
	size     int       // members there should be
	lost     time.Time // when the majority went out of sight; zero while it is in sight
	targets  []lb.TargetID
	verdicts []judgement
}

// decide gives the verdicts on targets that hold now, and whether they are
// frozen.
func (j *jury) decide(targets []lb.TargetID, records []lb.Record, now time.Time) (verdicts []judgement, frozen bool) {
	if len(records) >= j.size/2+1 {
		j.lost = time.Time{}
	} else if j.lost.IsZero() {
		j.lost = now
	}
	frozen = !j.lost.IsZero() && now.Sub(j.lost) < PartitionHold
	if frozen {
		verdicts = make([]judgement, len(targets))
		for i, t := range targets {
			if old, known := slices.BinarySearch(j.targets, t); known {
				verdicts[i] = j.verdicts[old]
			}
		}
	} else {
		verdicts = judge(targets, records)
	}
	j.targets, j.verdicts = targets, verdicts
	return verdicts, frozen
}
