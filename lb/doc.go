// Package lb holds halfproxy's nouns: services, backends, checks, observations
// and tables, as every other package speaks of them.
//
// It is data with the few pure functions that belong to it. It opens nothing,
// starts nothing and imports the standard library only, so any package may
// import it.
package lb
