// Package router runs the routers that halfproxy's users have, FRR and BIRD, and ExaBGP,
// in a network namespace: for the lab and for tests. It needs root and the
// distribution's packages, and touches neither their services nor their
// files under /etc and /run.
package router
