package doctor

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// system judges the kernel and what this process may do with it.
func system(h host) []Finding {
	var found []Finding
	if h.major > 0 && !h.atLeast(5, 10) { // 0: not known
		found = append(found, Finding{
			Check: "kernel", Severity: Problem,
			What:   fmt.Sprintf("Linux %s is too old: halfproxy needs 5.10 or later", h.release),
			Remedy: "install a kernel of 5.10 or later and boot it: Debian 11, RHEL 9 and Ubuntu 22.04 have one",
		})
	}
	if missing := missingCapabilities(h); h.root && len(missing) > 0 {
		// Root without them is root in a container.
		found = append(found, Finding{
			Check: "capabilities", Severity: Problem,
			What:   "root lacks CAP_" + strings.Join(missing, ", CAP_") + " here: the program can be neither loaded nor attached",
			Where:  "the container's start",
			Remedy: "docker run --cap-add " + strings.Join(missing, " --cap-add ") + " …",
		})
	}
	// From 5.11 on maps count as the control group's memory, before as locked
	// memory; who has CAP_SYS_RESOURCE raises the limit, and halfproxy does.
	if !h.atLeast(5, 11) && h.root && h.memlock < enoughMemlock && !h.has(unix.CAP_SYS_RESOURCE) {
		found = append(found, Finding{
			Check: "memlock", Severity: Problem,
			What: fmt.Sprintf("%d KiB of locked memory are allowed and cannot be raised (no CAP_SYS_RESOURCE): before Linux 5.11 the program's tables are locked memory",
				h.memlock>>10),
			Where:  "the container's start",
			Remedy: "docker run --ulimit memlock=-1:-1 …",
		})
	}
	return found
}

// enoughMemlock is more than the tables of a thousand services take.
const enoughMemlock = 1 << 30

func (h host) has(capability int) bool { return h.capabilities>>capability&1 != 0 }

// missingCapabilities names those of deploy/halfproxy.service that are not there.
// CAP_SYS_ADMIN has the two that were taken out of it in Linux 5.8.
func missingCapabilities(h host) []string {
	var missing []string
	for _, c := range []struct {
		name string
		has  bool
	}{
		{"NET_ADMIN", h.has(unix.CAP_NET_ADMIN)},
		{"BPF", h.has(unix.CAP_BPF) || h.has(unix.CAP_SYS_ADMIN)},
		{"PERFMON", h.has(unix.CAP_PERFMON) || h.has(unix.CAP_SYS_ADMIN)},
	} {
		if !c.has {
			missing = append(missing, c.name)
		}
	}
	return missing
}
