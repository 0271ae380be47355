package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/halfproxy/halfproxy/lb"
)

// The routers there are.
const (
	Embedded = "embedded" // GoBGP, from the binary itself: needs nothing but root
	FRR      = "frr"
	BIRD     = "bird"
)

// Forwards are the ways to its backends that the lab has.
var Forwards = []lb.Forward{lb.L2, lb.IPIP, lb.GRE, lb.GUE}

// Options say what to build.
type Options struct {
	Nodes, Backends int        // 3 and 3 if not given
	Router          string     // Embedded if not given
	Forward         lb.Forward // the way from the nodes to the backends
	// BFD has nodes and router, FRR or BIRD, watch each other every 100 ms.
	BFD bool
	// GracefulRestart is how long the router, FRR or BIRD, keeps the routes of a node that
	// restarts or crashes. Without it they go with the session, which shows more.
	GracefulRestart time.Duration
	// FlowRecords is node.flow_records; if not given it is not in the file.
	FlowRecords int
	// Binary is halfproxy itself, for the nodes and the embedded router: the
	// running program if not given.
	Binary string
	// Prefix begins the names of the namespaces: "halfproxy-" if not given.
	Prefix string
	// Dir is made by Start and removed by Close: configurations, keys, sockets
	// and logs. It is below /run and named after Prefix if not given.
	Dir string
	Log *slog.Logger // none if not given
}

// bfd is the interval of BFD as files have it; empty: there is none.
func (o Options) bfd() string {
	if o.BFD {
		return "100ms"
	}
	return ""
}

func (o Options) withDefaults() (Options, error) {
	setDefault(&o.Nodes, 3)
	setDefault(&o.Backends, 3)
	setDefault(&o.Router, Embedded)
	setDefault(&o.Prefix, "halfproxy-")
	setDefault(&o.Dir, filepath.Join("/run", o.Prefix+"lab"))
	setDefault(&o.Log, slog.New(slog.DiscardHandler))

	var errs []error
	if o.Binary == "" {
		var err error
		o.Binary, err = os.Executable()
		errs = append(errs, err)
	}
	if o.Nodes < 1 || o.Nodes > maxNodes {
		errs = append(errs, fmt.Errorf("%d nodes: the lab has addresses for 1 to %d", o.Nodes, maxNodes))
	}
	if o.Backends < 1 || o.Backends > maxBackends {
		errs = append(errs, fmt.Errorf("%d backends: the lab has addresses for 1 to %d", o.Backends, maxBackends))
	}
	if !slices.Contains(Forwards, o.Forward) {
		errs = append(errs, fmt.Errorf("forward %s is unknown: use one of %v", o.Forward, Forwards))
	}
	if !slices.Contains([]string{Embedded, FRR, BIRD}, o.Router) {
		errs = append(errs, fmt.Errorf("router %q is unknown: use %s, %s or %s", o.Router, Embedded, FRR, BIRD))
	}
	if o.BFD && o.Router == Embedded {
		errs = append(errs, errors.New("the embedded router speaks no BFD: take frr or bird"))
	}
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("network namespaces need root: run it with sudo"))
	}
	return o, errors.Join(errs...)
}

func setDefault[T comparable](value *T, def T) {
	var zero T
	if *value == zero {
		*value = def
	}
}
