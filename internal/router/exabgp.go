package router

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/halfproxy/halfproxy/internal/netns"
)

// ExaBGP is the ExaBGP daemon: it puts routes into no kernel, but tells all that
// neighbours send it.
type ExaBGP struct {
	heard  string
	exabgp *process
}

// StartExaBGP runs ExaBGP in ns with neighbours by the configuration conf. Each of
// them has to have `api { processes [ watch ]; receive { parsed; update; } }`. dir is
// an existing directory.
func StartExaBGP(ns *netns.NS, dir, conf string) (*ExaBGP, error) {
	path, err := find("exabgp", "apt-get install exabgp")
	if err != nil {
		return nil, err
	}
	e := &ExaBGP{heard: filepath.Join(dir, "heard.json")}
	file, script := filepath.Join(dir, "exabgp.conf"), filepath.Join(dir, "watch")
	watch := fmt.Sprintf("process watch {\n\trun %s;\n\tencoder json;\n}\n", script)
	if err := errors.Join(
		os.WriteFile(file, []byte(watch+conf), 0o644),
		// A shell that stays keeps its output open: else ExaBGP takes it for dead.
		os.WriteFile(script, []byte("#!/bin/sh\ncat >>"+e.heard+"\nexit\n"), 0o755),
	); err != nil {
		return nil, err
	}
	// Its own user, and the pipes of a command line, are for a service.
	e.exabgp, err = start(ns, filepath.Join(dir, "exabgp.log"), nil, "/usr/bin/env",
		"exabgp.daemon.user=root", "exabgp.api.cli=false", "exabgp.log.destination=stderr", "exabgp.tcp.delay=0", path, file)
	if err != nil {
		return nil, fmt.Errorf("exabgp in %s: %w", ns.Name, err)
	}
	return e, nil
}

// Updates gives each UPDATE's neighbour, and its content as ExaBGP decodes it.
func (e *ExaBGP) Updates() (updates []Update, err error) {
	heard, err := os.ReadFile(e.heard)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // nothing yet
	} else if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(heard) {
		var told struct {
			Type     string
			Neighbor struct {
				Address struct{ Peer string }
				Message struct{ Update *Update }
			}
		}
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // the rest of it is still to come
		}
		if err := json.Unmarshal(line, &told); err != nil {
			return nil, fmt.Errorf("exabgp says %s: %w", line, err)
		}
		if u := told.Neighbor.Message.Update; u != nil {
			u.Neighbor = told.Neighbor.Address.Peer
			updates = append(updates, *u)
		}
	}
	return updates, nil
}

// Update is what one UPDATE says.
type Update struct {
	Neighbor  string         `json:"-"`
	Attribute map[string]any // by name
	// Announce has, by family ("ipv4 unicast") and next hop, the prefixes.
	Announce map[string]map[string][]struct{ NLRI string }
}

// Log is what ExaBGP has to say, for a test that fails.
func (e *ExaBGP) Log() string {
	log, _ := os.ReadFile(e.exabgp.log)
	return string(log)
}

// Close stops ExaBGP.
func (e *ExaBGP) Close() error { return e.exabgp.stop() }
