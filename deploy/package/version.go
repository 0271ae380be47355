package main

import (
	"strings"
	"time"
)

// packageVersion turns what git describe says (v1.2.3, v1.2.3-5-gabcdef0, abcdef0, each
// perhaps with -dirty) into a version that dpkg and rpm both take, and order as we do:
// what came after a tag is newer than it, and what has no tag is older than any and
// ordered by its time.
func packageVersion(version string, made time.Time) string {
	tag, tagged := strings.CutPrefix(version, "v")
	if !tagged || tag == "" || tag[0] < '0' || tag[0] > '9' {
		return "0~" + made.Format("20060102150405") + "." + strings.ReplaceAll(version, "-", ".")
	}
	tag, rest, after := strings.Cut(tag, "-")
	switch {
	case !after:
		return tag
	case strings.HasPrefix(rest, "rc") || strings.HasPrefix(rest, "beta") || strings.HasPrefix(rest, "alpha"):
		return tag + "~" + strings.ReplaceAll(rest, "-", ".")
	default:
		return tag + "+" + strings.ReplaceAll(rest, "-", ".")
	}
}
