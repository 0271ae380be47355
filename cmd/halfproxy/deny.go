package main

import (
	"context"
	"os"
	"syscall"
	"time"

	"github.com/halfproxy/halfproxy/config"
)

// denyPoll is how often the deny list's file is looked at: an attack does not wait
// for somebody to reload.
const denyPoll = 2 * time.Second

// edition tells one content of a file from another that replaced it.
type edition struct {
	inode   uint64
	size    int64
	changed time.Time
}

func editionOf(path string) edition {
	info, err := os.Stat(path)
	if err != nil {
		return edition{}
	}
	e := edition{size: info.Size(), changed: info.ModTime()}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		e.inode = stat.Ino
	}
	return e
}

// watchDenied takes the deny list anew when its file was replaced.
func (n *node) watchDenied(ctx context.Context) error {
	ticker := time.NewTicker(denyPoll)
	defer ticker.Stop()
	path, seen := "", edition{}
	for {
		now := n.config().Node.DenyFile
		// At the start and after a reload too: it may have been replaced since it was read.
		if e := editionOf(now); now != "" && (now != path || e != seen) {
			path, seen = now, e
			if err := n.takeDenied(now); err != nil {
				n.log.Error("deny list not taken, the old one stays", "file", now, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (n *node) takeDenied(path string) error {
	list, err := config.ReadDenied(path)
	if err != nil {
		return err
	}
	if err := n.dataplane.Deny(list); err != nil {
		return err
	}
	n.log.Info("deny list taken", "file", path, "prefixes", len(list))
	return nil
}
