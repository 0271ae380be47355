// Package health probes the backends of services and keeps what it finds: this
// node's observations, which the cluster makes into verdicts.
//
// It never decides whether a backend is used, and it tells nobody but its
// caller. Control hands it the targets and takes the observations.
//
// # The schedule
//
// The first probe of a target comes within a second, or within Interval if that
// is shorter; the second at a random time within an Interval after it; the
// others every Interval exactly. Thus the probes of many targets, and of many
// nodes, spread evenly, and a backend is Down within
//
//	Fall × Interval + Timeout
//
// of its death, even if it died just after it had answered. A jitter from probe
// to probe would only add to that.
//
// One scheduler starts a goroutine for each probe that is due, which ends with
// the probe; in between a target costs a heap entry. A probe never waits for
// another, unless 8,192 are under way at once, or 32 programs of type exec.
//
// # The probes
//
// docs/health.md tells what each type asks. A TCP connection ends by a reset: a FIN
// would leave it in TIME_WAIT on this node for a minute. Of a body 64 KiB are read.
// A redirect is not followed: it could end at another server. No proxy is used,
// whatever the environment says, and no connection is kept.
//
// Timeout covers all of a probe.
package health
