// Package terminal tells whether output goes to a person's terminal.
package terminal

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Is tells whether out is one.
func Is(out io.Writer) bool {
	_, _, is := Size(out)
	return is
}

// Size is that of the terminal that out is, 0 where it does not say. is: it is one.
func Size(out io.Writer) (columns, rows int, is bool) {
	file, ok := out.(*os.File)
	if !ok {
		return 0, 0, false
	}
	size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0, false
	}
	return int(size.Col), int(size.Row), true
}
