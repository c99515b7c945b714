package main

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
)

func getFile(w http.ResponseWriter, r *http.Request) {
	f, err := os.Open(r.URL.Query().Get("path"))
	if err != nil {
		failFile(w, err)
		return
	}
	defer f.Close() //nolint:errcheck // opened for reading
	// Read before answering: kernel files report errors on read, not on open.
	data, err := io.ReadAll(f)
	if err != nil {
		failFile(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(data) // a lost peer has no use for it
}

// putFile replaces a file atomically. In the kernel's file systems, where
// nothing can be renamed, it writes the file in place with one write.
func putFile(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Query().Get("path")
	mode, err := strconv.ParseUint(r.URL.Query().Get("mode"), 8, 32)
	if err != nil {
		http.Error(w, "mode: "+err.Error(), http.StatusBadRequest)
		return
	}
	if kernelFile(path) {
		err = writeInPlace(path, r.Body)
	} else {
		err = replaceFile(path, fs.FileMode(mode), r.Body)
	}
	if err != nil {
		failFile(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func kernelFile(path string) bool {
	path = filepath.Clean(path)
	for _, root := range []string{"/sys/", "/proc/"} {
		if len(path) > len(root) && path[:len(root)] == root {
			return true
		}
	}
	return false
}

func writeInPlace(path string, body io.Reader) error {
	data, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

func replaceFile(path string, mode fs.FileMode, body io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".put-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone once renamed
	_, err = io.Copy(f, body)
	if err := errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func failFile(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	if errors.Is(err, fs.ErrNotExist) {
		code = http.StatusNotFound
	}
	http.Error(w, err.Error(), code)
}
