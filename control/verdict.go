package control

import (
	"iter"
	"slices"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// silence is how long a member counts after its last sign of life: four of the
// heartbeats it sends twice a second. memberlist's own liveness is not asked, an
// isolated node is slow to see that it is one.
const silence = 2 * time.Second

// judgement is what the members in sight hold of one target.
type judgement struct {
	state     lb.State // Up, Down or Unknown
	up        int      // observers that see it up
	observers int      // observers that have made up their mind
	ahead     uint8    // of one that is Up: the steps of its slow start that are before it
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

// vote gives what those hold whose observations are votes, and the names of the
// members that are blind, in the order of records: what a member sees that has
// just started, or whose own path is broken, says nothing of the backends.
func vote(targets []lb.TargetID, records []lb.Record) (verdicts []judgement, blind []string) {
	settled := slices.DeleteFunc(slices.Clone(records), func(r lb.Record) bool { return !r.Report.Settled })
	all := judge(targets, settled)
	var voting []lb.Record
	for i, isBlind := range blindness(targets, settled, all) {
		if isBlind {
			blind = append(blind, settled[i].Member)
		} else {
			voting = append(voting, settled[i])
		}
	}
	if len(blind) == 0 {
		return all, nil
	}
	return judge(targets, voting), blind
}

// blindness tells which of the records, whose majorities all has, are of blind members:
// such that hold more than half of the backends they judge to be down while most of the
// others who judge those see them up. There is always one that is not, when all judge the same
// backends: no more than half of the observers of a backend can be wrong like this.
func blindness(targets []lb.TargetID, records []lb.Record, all []judgement) []bool {
	blind := make([]bool, len(records))
	for i, r := range records {
		judged, alone := 0, 0
		for at, o := range opinions(targets, r.Report.Observations) {
			judged++
			if others := all[at].observers - 1; o.State == lb.Down && 2*all[at].up > others {
				alone++
			}
		}
		blind[i] = 2*alone > judged
	}
	if !slices.Contains(blind, false) {
		clear(blind)
	}
	return blind
}

// opinions gives the places among targets, which are sorted as observations are,
// of those that an observer has made up its mind about.
func opinions(targets []lb.TargetID, observations []lb.Observation) iter.Seq2[int, lb.Observation] {
	return func(yield func(int, lb.Observation) bool) {
		i := 0
		for _, o := range observations {
			for i < len(targets) && targets[i] < o.Target {
				i++
			}
			if i == len(targets) {
				return // what follows are questions that only others ask
			}
			if targets[i] == o.Target && o.State != lb.Unknown && !yield(i, o) {
				return
			}
		}
	}
}

// judge gives the majority's opinion on each of targets. It takes more than half
// of the observers to hold a backend down: a tie leaves it in use. Of a slow start the
// middle one of those that see it up decides.
func judge(targets []lb.TargetID, records []lb.Record) []judgement {
	verdicts := make([]judgement, len(targets))
	starting := make(map[int][]uint8)
	for _, r := range records {
		for i, o := range opinions(targets, r.Report.Observations) {
			verdicts[i].observers++
			if o.State == lb.Up {
				verdicts[i].up++
			}
			if o.Ahead > 0 {
				starting[i] = append(starting[i], o.Ahead)
			}
		}
	}
	for i, ahead := range starting {
		verdicts[i].ahead = median(ahead, verdicts[i].up)
	}
	for i := range verdicts {
		switch j := &verdicts[i]; {
		case j.observers == 0:
			j.state = lb.Unknown
		case 2*j.up >= j.observers:
			j.state = lb.Up
		default:
			j.state, j.ahead = lb.Down, 0
		}
	}
	return verdicts
}

// median of so many numbers, of which all but those given are 0, the greater one of two:
// an observer that has just come does not know that a backend starts slowly.
func median(others []uint8, of int) uint8 {
	slices.Sort(others)
	zeros := of - len(others)
	if of/2 < zeros {
		return 0
	}
	return others[of/2-zeros]
}

// jury remembers what judging needs to know of the past: nothing, but while
// too few members are in sight, or nobody observes a backend.
type jury struct {
	size     int           // members there should be
	hold     time.Duration // how long verdicts stay as they were without a majority in sight
	lost     time.Time     // when the majority went out of sight; zero while it is in sight
	targets  []lb.TargetID
	verdicts []judgement
}

// finding is what a jury came to.
type finding struct {
	verdicts []judgement // of the targets, in their order
	blind    []string    // members, in the order of their records
	frozen   bool        // too few in sight: the verdicts are those of before
}

// decide gives the verdicts on targets that hold now.
func (j *jury) decide(targets []lb.TargetID, records []lb.Record, now time.Time) finding {
	if len(records) >= j.size/2+1 {
		j.lost = time.Time{}
	} else if j.lost.IsZero() {
		j.lost = now
	}
	f := finding{frozen: !j.lost.IsZero() && now.Sub(j.lost) < j.hold}
	f.verdicts, f.blind = vote(targets, records)
	if f.frozen {
		f.verdicts = make([]judgement, len(targets))
	}
	// Who was judged once is not forgotten because nobody looks just now.
	for i, t := range targets {
		if f.verdicts[i].observers > 0 {
			continue
		}
		if old, known := slices.BinarySearch(j.targets, t); known {
			f.verdicts[i] = j.verdicts[old]
		}
	}
	j.targets, j.verdicts = targets, f.verdicts
	return f
}
