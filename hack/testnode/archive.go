package testnode

import (
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// file is an entry of an archive. Its path has no leading slash.
type file struct {
	path string
	mode fs.FileMode // permissions, and fs.ModeSymlink for a link
	data []byte      // contents, or the target of a link
}

func symlink(path, target string) file {
	return file{path, fs.ModeSymlink | 0o777, []byte(target)}
}

// withDirectories adds the directories that hold the files, each before what it
// holds, and sorts by path.
func withDirectories(files []file) []file {
	entries := make(map[string]file)
	for _, f := range files {
		entries[f.path] = f
		for dir := path.Dir(f.path); dir != "."; dir = path.Dir(dir) {
			if _, ok := entries[dir]; !ok {
				entries[dir] = file{path: dir, mode: fs.ModeDir | 0o755}
			}
		}
	}
	all := make([]file, 0, len(entries))
	for _, f := range entries {
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b file) int { return strings.Compare(a.path, b.path) })
	return all
}

// cpio writes an archive in the "newc" format, which the kernel unpacks as its
// initial root; archives that follow each other are unpacked in turn.
func cpio(files []file) []byte {
	var out bytes.Buffer
	for inode, f := range withDirectories(files) {
		writeCpioEntry(&out, inode+1, f)
	}
	writeCpioEntry(&out, 0, file{path: "TRAILER!!!"})
	return out.Bytes()
}

func writeCpioEntry(out *bytes.Buffer, inode int, f file) {
	mode := uint32(f.mode.Perm())
	switch {
	case f.mode.IsDir():
		mode |= 0o040000
	case f.mode&fs.ModeSymlink != 0:
		mode |= 0o120000
	case inode != 0:
		mode |= 0o100000
	}
	name := f.path + "\x00"
	// inode mode uid gid links mtime size device(2) special device(2) name length, checksum
	out.WriteString("070701")
	for _, field := range []uint32{uint32(inode), mode, 0, 0, 1, 0, uint32(len(f.data)), 0, 0, 0, 0, uint32(len(name)), 0} {
		fmt.Fprintf(out, "%08x", field)
	}
	out.WriteString(name)
	pad4(out)
	out.Write(f.data)
	pad4(out)
}

func pad4(out *bytes.Buffer) {
	for out.Len()%4 != 0 {
		out.WriteByte(0)
	}
}
