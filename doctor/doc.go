// Package doctor finds what on this host would keep packets from flowing, and
// says for each what mends it.
//
// It works in two steps. gather.go and its neighbours collect facts: from
// netlink, ethtool, /proc, by binding a port for a moment, by connecting to a
// router. The rest are pure functions that judge them:
//
//	gather ──► host ──► system, interfaces, reversePaths, pinning, backends, vips, listening, names, peers ──► Report
//
// It changes nothing on the host. What it sends are datagrams to the discard
// port of backends whose link-layer address the kernel does not know, so that
// the kernel asks for it, and TCP connections to BGP peers while no node runs.
// It asks no running node: who calls it says whether there is one.
//
// Whether backends serve is for health checks to find out, and for status to
// show: one whose link-layer address the kernel still knows counts as there. What
// a backend needs on its own host is looked at there, by ExamineBackend.
package doctor
