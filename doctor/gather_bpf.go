package doctor

import (
	"errors"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Questions to bpf(2), about programs that are there: nothing is loaded here,
// that is xdp's. An answer that cannot be had is empty.

// programName asks for a program's name.
func programName(id uint32) string {
	fd, err := bpf(unix.BPF_PROG_GET_FD_BY_ID, &[16]byte{}, id)
	if err != nil {
		return ""
	}
	defer unix.Close(int(fd))
	var info struct { // bpf_prog_info up to its name
		_    [64]byte
		name [unix.BPF_OBJ_NAME_LEN]byte
	}
	if objectInfo(fd, unsafe.Pointer(&info), unsafe.Sizeof(info)) != nil {
		return ""
	}
	return unix.ByteSliceToString(info.name[:])
}

// linkOf finds the bpf_link that holds program id on an interface.
func linkOf(id uint32, ifindex int) uint32 {
	for at := uint32(0); ; {
		var next [16]byte // start_id, next_id, open_flags
		if _, err := bpf(unix.BPF_LINK_GET_NEXT_ID, &next, at); err != nil {
			return 0
		}
		at = *(*uint32)(unsafe.Pointer(&next[4]))
		fd, err := bpf(unix.BPF_LINK_GET_FD_BY_ID, &[16]byte{}, at)
		if err != nil {
			continue // gone in between
		}
		info, err := linkInfo(fd)
		unix.Close(int(fd))
		if err == nil && info.kind == unix.BPF_LINK_TYPE_XDP && info.program == id && info.ifindex == uint32(ifindex) {
			return at
		}
	}
}

// bpfLink is bpf_link_info of an XDP link.
type bpfLink struct {
	kind, id, program, _ uint32
	ifindex              uint32
	_                    [44]byte
}

func linkInfo(fd uintptr) (bpfLink, error) {
	var info bpfLink
	return info, objectInfo(fd, unsafe.Pointer(&info), unsafe.Sizeof(info))
}

// nodeOf finds the node that has pinned a link below pins, and whether it has a
// process: that holds a lock on the node's directory.
func nodeOf(link uint32, pins string) (dir string, runs bool) {
	if pins == "" || link == 0 {
		return "", false
	}
	paths, _ := filepath.Glob(filepath.Join(pins, "*", "links", "*")) // bad patterns find nothing
	for _, path := range paths {
		if pinnedLink(path) != link {
			continue
		}
		dir = filepath.Dir(filepath.Dir(path))
		f, err := os.Open(dir)
		if err != nil {
			return dir, false
		}
		defer f.Close() // and with it our own lock, which lets another one in
		return dir, unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
	}
	return "", false
}

// pinnedLink is the ID of the link at path.
func pinnedLink(path string) uint32 {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return 0
	}
	attr := struct {
		path unsafe.Pointer
		_    [8]byte // bpf_fd, file_flags
	}{path: unsafe.Pointer(name)}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return 0
	}
	defer unix.Close(int(fd))
	info, err := linkInfo(fd)
	if err != nil || info.kind != unix.BPF_LINK_TYPE_XDP {
		return 0
	}
	return info.id
}

// inBPFFS says whether dir, or the nearest directory above that there is, lies
// in a BPF file system.
func inBPFFS(dir string) bool {
	var s unix.Statfs_t
	err := unix.Statfs(dir, &s)
	if errors.Is(err, unix.ENOENT) && dir != filepath.Dir(dir) {
		return inBPFFS(filepath.Dir(dir))
	}
	return err == nil && s.Type == unix.BPF_FS_MAGIC
}

// bpf runs a command whose attributes begin with an ID.
func bpf(command uintptr, attr *[16]byte, id uint32) (uintptr, error) {
	*(*uint32)(unsafe.Pointer(&attr[0])) = id
	fd, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
	if errno != 0 {
		return 0, errno
	}
	return fd, nil
}

func objectInfo(fd uintptr, info unsafe.Pointer, size uintptr) error {
	attr := struct {
		fd, size uint32
		info     unsafe.Pointer
	}{uint32(fd), uint32(size), info}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET_INFO_BY_FD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)); errno != 0 {
		return errno
	}
	return nil
}
