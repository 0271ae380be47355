// Simulate tells how many flows break that a load balancer need not have broken, by several
// ways of tracking them: `make simulate`. The table and the rules are the product's own.
package main

import (
	"container/heap"
	"flag"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/halfproxy/halfproxy/maglev"
	"github.com/halfproxy/halfproxy/track"
)

// world is what happens, and to whom.
type world struct {
	nodes, backends    int
	lasts              time.Duration
	flowsPerSecond     float64
	flowLength         time.Duration // mean, of an exponential distribution
	packetEvery        time.Duration // mean
	backendEvery       time.Duration // one goes or comes
	nodeEvery          time.Duration
	lifetime           time.Duration // after which a change no longer matters
	disuse             time.Duration // after which a slot's base is given up that no packet went to; 0: never
	spread             spread
	newsLag, recordLag time.Duration // at most, to each node; of records: always
	seed               uint64
}

const size = maglev.DefaultSize

// spread is how a router chooses one of the nodes that there are by a flow's hash.
type spread func(hash uint64, nodes []int, all int) int

var spreads = map[string]spread{
	// Linux, and most routers (RFC 2992).
	"threshold": func(hash uint64, nodes []int, _ int) int {
		share, _ := bits.Mul64(hash, uint64(len(nodes)))
		return nodes[share]
	},
	"modulo": func(hash uint64, nodes []int, _ int) int { return nodes[hash%uint64(len(nodes))] },
	// Only the flows of a node that goes are moved.
	"resilient": func(hash uint64, nodes []int, all int) int {
		if n := int(hash % uint64(all)); slices.Contains(nodes, n) {
			return n
		}
		return nodes[(hash>>32)%uint64(len(nodes))]
	},
}

// The ways of tracking that are compared.
const (
	alone = iota
	perNode
	unshared
	shared
	ways
)

var wayNames = [ways]string{"Maglev alone", "every flow, on its node", "changes, not shared", "changes, shared"}

// view is the table as a node has it from a time on.
type view struct {
	from  time.Duration
	slots []track.Slot
	alive []bool
}

type record struct {
	backend uint16
	at      time.Duration
	node    int
}

type flow struct {
	id      int
	slot    int
	ecmp    uint64
	next    time.Duration
	ends    time.Duration
	begun   bool
	backend [ways]uint16 // where it began
	broken  [ways]bool
}

type queue []*flow

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].next < q[j].next }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)        { *q = append(*q, x.(*flow)) }
func (q *queue) Pop() any {
	old := *q
	f := old[len(old)-1]
	*q = old[:len(old)-1]
	return f
}

// result is what became of the flows.
type result struct {
	flows   int
	broken  [ways]int
	records [ways]int
}

func (w world) run() result {
	random := rand.New(rand.NewPCG(w.seed, 0))
	epoch := time.Unix(0, 0)
	set := make([]maglev.Backend, w.backends)
	for i := range set {
		set[i] = maglev.Backend{Name: fmt.Sprint("b", i), Weight: 1}
	}
	table := func(alive []bool) []uint16 {
		list := slices.Clone(set)
		for i := range list {
			if !alive[i] {
				list[i].Weight = 0
			}
		}
		return maglev.Table("service", list, size)
	}

	// What happens to backends, and when each node makes a table of it.
	type change struct {
		at    time.Duration
		alive []bool
	}
	alive := slices.Repeat([]bool{true}, w.backends)
	changes := []change{{0, slices.Clone(alive)}}
	for at := w.backendEvery; at < w.lasts; at += w.backendEvery {
		i := random.IntN(w.backends)
		if down := slices.Index(alive, false); down >= 0 && random.IntN(2) == 0 {
			i = down
		}
		alive[i] = !alive[i]
		changes = append(changes, change{at, slices.Clone(alive)})
	}
	var stages []track.Stage
	views := make([][]view, w.nodes)
	for _, c := range changes {
		stages = append(stages, track.Stage{Since: epoch.Add(c.at), Slots: table(c.alive), Alive: c.alive})
		for len(stages) > 1 && c.at-stages[1].Since.Sub(epoch) >= w.lifetime {
			stages = stages[1:]
		}
		slots := track.Bases(stages, size, epoch.Add(c.at), 0)
		for n := range views {
			from := c.at
			if c.at > 0 {
				from += time.Duration(random.Int64N(int64(w.newsLag)))
			}
			views[n] = append(views[n], view{from, slots, c.alive})
		}
	}
	// Which nodes there are.
	type hops struct {
		at    time.Duration
		nodes []int
	}
	all := make([]int, w.nodes)
	for i := range all {
		all[i] = i
	}
	routes := []hops{{0, all}}
	for at, away := w.nodeEvery, false; at < w.lasts; at += w.nodeEvery {
		nodes := all
		if away = !away; away {
			gone := random.IntN(w.nodes)
			nodes = slices.DeleteFunc(slices.Clone(all), func(n int) bool { return n == gone })
		}
		routes = append(routes, hops{at, nodes})
	}

	var r result
	var q queue
	for at := 0.0; at < w.lasts.Seconds(); at += random.ExpFloat64() / w.flowsPerSecond {
		begins := time.Duration(at * float64(time.Second))
		length := time.Duration(random.ExpFloat64() * float64(w.flowLength))
		q = append(q, &flow{id: r.flows, slot: random.IntN(size), ecmp: random.Uint64(), next: begins, ends: begins + length})
		r.flows++
	}
	heap.Init(&q)
	local := make([]map[int]record, w.nodes) // every flow, on its node
	own := make([]map[int]record, w.nodes)   // changes, not shared
	for n := range local {
		local[n], own[n] = make(map[int]record), make(map[int]record)
	}
	told := make(map[int]record) // changes, shared
	current := make([]int, w.nodes)
	// When a packet last went elsewhere than its slot's current backend, by any node.
	strayed := make([]struct {
		from track.Slot
		at   time.Duration
	}, size)
	truth, route := 0, 0
	for len(q) > 0 {
		f := heap.Pop(&q).(*flow)
		now := f.next
		if now > w.lasts {
			break
		}
		for truth+1 < len(changes) && changes[truth+1].at <= now {
			truth++
		}
		for route+1 < len(routes) && routes[route+1].at <= now {
			route++
		}
		nodes := routes[route].nodes
		n := w.spread(f.ecmp, nodes, w.nodes)
		for current[n]+1 < len(views[n]) && views[n][current[n]+1].from <= now {
			current[n]++
		}
		v := views[n][current[n]]
		slot := v.slots[f.slot]
		if w.disuse > 0 && slot.InTransition {
			s := &strayed[f.slot]
			if s.from != slot {
				s.from, s.at = slot, now
			}
			if now-s.at > w.disuse {
				slot = track.Slot{Current: slot.Current}
			}
		}
		kind := track.Continues
		if !f.begun {
			kind = track.Opens
		}

		var to [ways]uint16
		to[alone] = slot.Current
		if there, known := local[n][f.id]; known && v.alive[there.backend] {
			to[perNode] = there.backend
		} else {
			to[perNode] = slot.Current
			local[n][f.id] = record{slot.Current, now, n}
			r.records[perNode]++
		}
		there, known := own[n][f.id]
		backend, write := slot.Decide(kind, track.Recorded{Backend: there.backend, Known: known && v.alive[there.backend]})
		if to[unshared] = backend; write {
			own[n][f.id] = record{backend, now, n}
			r.records[unshared]++
		}
		there, known = told[f.id]
		known = known && v.alive[there.backend] && (there.node == n || now >= there.at+w.recordLag)
		backend, write = slot.Decide(kind, track.Recorded{Backend: there.backend, Known: known})
		if to[shared] = backend; write {
			told[f.id] = record{backend, now, n}
			r.records[shared]++
		}

		if to[unshared] != slot.Current {
			strayed[f.slot].at = now
		}
		living := changes[truth].alive
		for way := range to {
			switch {
			case !f.begun:
				f.backend[way] = to[way]
				f.broken[way] = !living[to[way]] // nobody could know yet: not counted below
			case f.broken[way]:
			case !living[f.backend[way]]:
				f.broken[way] = true // with its backend
			case to[way] != f.backend[way]:
				f.broken[way] = true
				r.broken[way]++
			}
		}
		f.begun = true
		if f.next += time.Duration(random.ExpFloat64() * float64(w.packetEvery)); f.next < f.ends {
			heap.Push(&q, f)
		}
	}
	return r
}

func main() {
	w := world{nodes: 4, backends: 50, lasts: 10 * time.Minute, flowsPerSecond: 500, seed: 1}
	flag.IntVar(&w.nodes, "nodes", w.nodes, "nodes")
	flag.IntVar(&w.backends, "backends", w.backends, "backends")
	flag.DurationVar(&w.lasts, "lasts", w.lasts, "how long a run lasts")
	flag.Float64Var(&w.flowsPerSecond, "flows", w.flowsPerSecond, "flows that begin in a second")
	flag.DurationVar(&w.flowLength, "length", 30*time.Second, "mean length of a flow")
	flag.DurationVar(&w.packetEvery, "packets", time.Second, "mean time between packets of a flow")
	flag.DurationVar(&w.backendEvery, "backend", 20*time.Second, "time between two changes of backends")
	flag.DurationVar(&w.nodeEvery, "node", 45*time.Second, "time between two changes of nodes")
	flag.DurationVar(&w.lifetime, "lifetime", time.Hour, "flow_lifetime")
	flag.DurationVar(&w.newsLag, "news", 300*time.Millisecond, "time that news takes to a node at most")
	flag.DurationVar(&w.recordLag, "record", 20*time.Millisecond, "time that a record takes to the other nodes")
	flag.DurationVar(&w.disuse, "disuse", 0, "give a slot's base up when no packet went there for so long, as halfproxy does not")
	router := flag.String("spread", "threshold", "how routers spread flows: threshold, modulo or resilient")
	plot := flag.String("plot", "", "file to write the plot to, as SVG")
	flag.Parse()
	if w.spread = spreads[*router]; w.spread == nil {
		fmt.Fprintf(os.Stderr, "-spread %s is unknown: use threshold, modulo or resilient\n", *router)
		os.Exit(2)
	}

	r := w.run()
	fmt.Printf("%d flows; %d nodes, %d backends, %v\n\n", r.flows, w.nodes, w.backends, w.lasts)
	fmt.Println("| tracking | flows broken | share | records a flow |")
	fmt.Println("|---|---:|---:|---:|")
	for way, name := range wayNames {
		fmt.Printf("| %s | %d | %.4f %% | %.3f |\n", name, r.broken[way], 100*r.share(way), float64(r.records[way])/float64(r.flows))
	}
	if *plot != "" {
		if err := os.WriteFile(*plot, []byte(r.svg()), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func (r result) share(way int) float64 { return float64(r.broken[way]) / float64(r.flows) }

// svg is a bar for each way, on a scale of powers of ten.
func (r result) svg() string {
	const left, width, height, least = 190, 420, 34, -4.5
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="13">`+"\n", left+width+90, height*(ways+1)+20)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	place := func(share float64) float64 { return max(0, (math.Log10(max(share, 1e-9))-least)/(-1-least)) * width }
	for power := -4; power <= -1; power++ {
		x := left + place(math.Pow10(power))
		fmt.Fprintf(&b, `<path d="M%.0f 10V%d" stroke="#ccc"/><text x="%.0f" y="%d" text-anchor="middle">%g %%</text>`+"\n", x, height*ways+12, x, height*ways+30, 100*math.Pow10(power))
	}
	for way, name := range wayNames {
		y := 14 + height*way
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%.0f" height="22" fill="#4477aa"/><text x="%.0f" y="%d">%.4f %%</text>`+"\n",
			left-8, y+15, name, left, y, place(r.share(way)), left+place(r.share(way))+6, y+15, 100*r.share(way))
	}
	b.WriteString("</svg>\n")
	return b.String()
}
