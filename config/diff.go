package config

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
)

// Seal gives settings whose secrets are digests that only tell something to who has the
// salt and the secrets: they may leave the process.
func Seal(list []Setting, salt []byte) []Setting {
	sealed := slices.Clone(list)
	for i, s := range sealed {
		if s.Secret != nil {
			seal := hmac.New(sha256.New, salt)
			seal.Write(s.Secret)
			sealed[i].Secret = seal.Sum(nil)
		}
	}
	return sealed
}

// Change is what differs between two configurations at one place.
type Change struct {
	Path    string
	Was, Is string // empty: not set, or not there
	Entry   bool   // Path is of an entry that is new or gone
	New     bool   // of an entry
	Secret  bool   // what differs is not to be shown
}

func (c Change) String() string {
	switch {
	case c.Entry && c.New:
		return fmt.Sprintf("%s is new: %s", c.Path, c.Is)
	case c.Entry:
		return fmt.Sprintf("%s is gone: %s", c.Path, c.Was)
	case c.Was != c.Is:
		return fmt.Sprintf("%s: %s -> %s", c.Path, cmp.Or(c.Was, "not set"), cmp.Or(c.Is, "not set"))
	case c.Is == "":
		return c.Path + " is another"
	}
	return fmt.Sprintf("%s: %s holds something else", c.Path, c.Is)
}

// Diff lists what differs between old and new, in the order of new; what is gone comes
// last. An entry that is new or gone is one change.
func Diff(old, new []Setting) []Change {
	was, is := byPath(old), byPath(new)
	var changes []Change
	whole := ""
	for _, s := range new {
		before, known := was[s.Path]
		switch {
		case within(s.Path, whole):
		case s.Entry && !known:
			whole = s.Path
			changes = append(changes, Change{Path: s.Path, Is: s.Value, Entry: true, New: true})
		case s.Entry: // its keys tell
		case s.Value != before.Value || !bytes.Equal(s.Secret, before.Secret):
			changes = append(changes, Change{Path: s.Path, Was: before.Value, Is: s.Value, Secret: !bytes.Equal(s.Secret, before.Secret)})
		}
	}
	whole = ""
	for _, s := range old {
		if _, kept := is[s.Path]; kept || within(s.Path, whole) {
			continue
		}
		if s.Entry {
			whole = s.Path
		}
		changes = append(changes, Change{Path: s.Path, Was: s.Value, Entry: s.Entry, Secret: s.Secret != nil})
	}
	return changes
}

func byPath(list []Setting) map[string]Setting {
	m := make(map[string]Setting, len(list))
	for _, s := range list {
		m[s.Path] = s
	}
	return m
}

// within tells whether a path is in an entry.
func within(path, entry string) bool { return entry != "" && strings.HasPrefix(path, entry+": ") }

// NeedsRestart tells whether a node that runs cannot take the change.
func (c Change) NeedsRestart() bool {
	section, key, _ := strings.Cut(c.Path, ".")
	switch section {
	case "node":
		return key != "deny_file"
	case "cluster":
		return key == "name" || key == "listen" || key == "hash_key_file" && c.Secret
	case "bgp":
		key, _, _ = strings.Cut(key, " ")
		return key != "peers" && key != "aggregates" && key != "communities"
	case "http", "admin":
		return true
	}
	return false
}
