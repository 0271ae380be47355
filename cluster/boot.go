package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// nextBoot gives a boot number greater than all before it: the clock's
// nanoseconds, or one more than the last that is kept in dir if the clock went
// back. Without dir it is the clock's.
func nextBoot(dir string, now time.Time) (uint64, error) {
	boot := uint64(max(now.UnixNano(), 1))
	if dir == "" {
		return boot, nil
	}
	b, err := os.ReadFile(bootFile(dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("read boot number: %w", err)
	}
	if err == nil {
		last, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 62)
		if err != nil {
			return 0, fmt.Errorf("read boot number from %s: %w: remove the file, the clock takes over", bootFile(dir), err)
		}
		boot = max(boot, last+1)
	}
	return boot, keepBoot(dir, boot)
}

// keepBoot writes boot so that a crash leaves the old number or the new one.
func keepBoot(dir string, boot uint64) error {
	if dir == "" {
		return nil
	}
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = renameio.WriteFile(bootFile(dir), fmt.Appendln(nil, boot), 0o644)
	}
	if err != nil {
		return fmt.Errorf("keep boot number in %s: %w: the directory must be writable", dir, err)
	}
	return nil
}

func bootFile(dir string) string { return filepath.Join(dir, "boot") }
