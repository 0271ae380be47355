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
// another, unless 4,096 are under way at once.
//
// # The probes
//
// tcp: the connection is established. It is closed at once, with a FIN: a reset
// would be cheaper for both, and an error in the log of many servers.
//
// http: GET of the check's path answers with a status from 200 to 299 and with
// its whole body, of which 64 KiB are read. A redirect is a failure: it says that
// the page is elsewhere, and following it could end at another server. No
// proxy is used, whatever the environment says, and no connection is kept.
//
// Timeout covers all of a probe.
package health
