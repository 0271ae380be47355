// Package events keeps what has happened lately: the records of the log, as many as fit
// into a ring. What a node logs for whoever reads files, it can thus tell those who ask.
package events
