package cluster

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	joinsAtOnce = 8 // bounds the connections to addresses that may not answer
	// joinsEnough bounds how many members are joined before their gossip is given the
	// time to tell of all others: where fifty start at once and each joins each, all are
	// too busy to answer.
	joinsEnough = 2
)

// seek joins whoever is missing, for ever: the configured addresses, and those
// of members that are gone without a word. memberlist by itself talks to nobody
// whom it takes for dead, so two halves of a cluster that have lost each other
// would stay apart.
func (c *Cluster) seek(ctx context.Context, ml *memberlist.Memberlist) {
	complained := make(map[string]bool) // of configured addresses that are away
	for ctx.Err() == nil {
		var mu sync.Mutex // guards tried
		tried := make(map[string]error)
		var attempts sync.WaitGroup
		var joined atomic.Int32
		slots := make(chan struct{}, joinsAtOnce)
		configured, lost := c.sought()
		addresses := slices.Concat(configured, lost)
		rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
		for _, address := range addresses {
			slots <- struct{}{}
			if joined.Load() >= joinsEnough {
				break
			}
			attempts.Go(func() {
				n, err := c.join(ctx, ml, address)
				joined.Add(n)
				mu.Lock()
				tried[address] = err
				mu.Unlock()
				<-slots
			})
		}
		attempts.Wait()
		if ctx.Err() != nil {
			return
		}
		for _, address := range configured {
			err, was := tried[address]
			if !was {
				continue
			}
			if err != nil && !complained[address] {
				c.log.Warn("member to join not reached, trying again for ever", "address", address, "err", err,
					"remedy", "see that it runs, that its gossip port is open, and that it has this cluster's name and key")
			}
			complained[address] = err != nil
		}

		// Jitter, lest all nodes of a healed network knock at the same time.
		wait := c.timing.seek*2/3 + rand.N(c.timing.seek*2/3)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// sought are the addresses to try, each once: those to join, and those of members
// that are gone.
func (c *Cluster) sought() (configured, lost []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, address := range c.roster.lost() {
		if s := address.String(); !slices.Contains(c.joins, s) {
			lost = append(lost, s)
		}
	}
	return c.joins, lost
}

// join joins the addresses of hostPort that no member has, and tells how many it
// joined. It is content when one of them is a member's. Names are resolved here: memberlist first asks for
// ANY over TCP, and takes 2 to 12 seconds when no resolver answers that.
func (c *Cluster) join(ctx context.Context, ml *memberlist.Memberlist, hostPort string) (joined int32, err error) {
	addresses, err := c.resolve(ctx, hostPort)
	if err != nil {
		return 0, err
	}
	reached := false
	var errs []error
	for _, address := range addresses {
		c.mu.Lock()
		listed := c.roster.listed(address)
		c.mu.Unlock()
		if !listed {
			// One address a call: Join is content with one that answers.
			if _, err := ml.Join([]string{address.String()}); err != nil {
				errs = append(errs, err)
				continue
			}
			joined++
		}
		reached = true
	}
	if reached {
		return joined, nil
	}
	return 0, errors.Join(errs...)
}

// resolve gives the addresses of the family that this member listens on.
func (c *Cluster) resolve(ctx context.Context, hostPort string) ([]netip.AddrPort, error) {
	host, port, err := splitHostPort(hostPort)
	if err != nil {
		return nil, err
	}
	if address, err := netip.ParseAddr(host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(address.Unmap(), port)}, nil
	}
	family := "ip6"
	if c.cfg.Listen.Addr().Is4() {
		family = "ip4"
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, family, host)
	if err != nil {
		return nil, err
	}
	list := make([]netip.AddrPort, len(addresses))
	for i, address := range addresses {
		list[i] = netip.AddrPortFrom(address.Unmap(), port)
	}
	return list, nil
}

func splitHostPort(hostPort string) (string, uint16, error) {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return "", 0, err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 || host == "" {
		return "", 0, &net.AddrError{Err: "host and port expected", Addr: hostPort}
	}
	return host, uint16(number), nil
}
