package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// texts lists the files to read: those named, and all in the folders named, in the order of their names. Without
// any it is the Go sources of the toolchain that is installed.
func texts(ctx context.Context, paths []string) ([]string, error) {
	want := func(string) bool { return true }
	if len(paths) == 0 {
		root, err := toolchain(ctx)
		if err != nil {
			return nil, err
		}
		paths = []string{filepath.Join(root, "src")}
		want = func(path string) bool { return strings.HasSuffix(path, ".go") }
	}
	var files []string
	for _, path := range paths {
		err := filepath.WalkDir(path, func(path string, entry fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case ctx.Err() != nil:
				return ctx.Err()
			case entry.Type().IsRegular() && want(path):
				files = append(files, path)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(files)
	files = slices.Compact(files) // somebody named a folder and a file in it
	if len(files) == 0 {
		return nil, fmt.Errorf("there is no file in %s", strings.Join(paths, ", "))
	}
	return files, nil
}

// toolchain returns the folder of the Go toolchain that is installed here.
func toolchain(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	root := strings.TrimSpace(string(out))
	if err != nil || root == "" {
		root = runtime.GOROOT() // empty, if this program was built without paths
	}
	if _, err := os.Stat(filepath.Join(root, "src")); root == "" || err != nil {
		return "", usagef("no Go toolchain is installed here, whose sources could be read; name files or folders instead: shmkit demo wordcount PATH")
	}
	return root, nil
}

// countWords adds the words of the file to counts, and returns how many they are. A word is what most languages take for a name: letters,
// digits and underscores, not beginning with a digit. A file with a zero byte is no text, and has none.
func countWords(path string, counts map[string]int64) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil || bytes.IndexByte(text, 0) >= 0 {
		return 0, err
	}
	words := int64(0)
	for len(text) > 0 {
		n, size := wordAt(text)
		if n > 0 {
			counts[string(text[:n])]++
			words++
		}
		text = text[n+size:]
	}
	return words, nil
}

// wordAt returns how many bytes of a word text begins with, and how many after them belong to none.
func wordAt(text []byte) (word, rest int) {
	number := false
	for word < len(text) {
		r, size := rune(text[word]), 1
		if r >= utf8.RuneSelf {
			r, size = utf8.DecodeRune(text[word:])
		}
		digit := r >= '0' && r <= '9' || r >= utf8.RuneSelf && unicode.IsDigit(r)
		if !digit && !(r|0x20 >= 'a' && r|0x20 <= 'z' || r == '_' || r >= utf8.RuneSelf && r != utf8.RuneError && unicode.IsLetter(r)) {
			rest = size
			break
		}
		number = number || word == 0 && digit
		word += size
	}
	if number {
		return 0, word + rest
	}
	return word, rest
}
