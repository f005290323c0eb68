// Every est-server command in the documents is one that the program takes.

package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	codeBlock = regexp.MustCompile("(?s)```bash\n(.*?)```")
	quoted    = regexp.MustCompile(`"[^"]*"|'[^']*'|\S+`)
)

func TestCommandsInDocuments(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	commands := 0
	for _, file := range append(files, "../README.md") {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range codeBlock.FindAllStringSubmatch(string(content), -1) {
			for line := range strings.Lines(strings.ReplaceAll(block[1], "\\\n", " ")) {
				command, ok := strings.CutPrefix(strings.TrimPrefix(strings.TrimSpace(line), "sudo -u est-server "), "est-server ")
				if !ok {
					continue
				}
				commands++
				command, _, _ = strings.Cut(command, " > ")
				words := quoted.FindAllString(command, -1)
				for i := range words {
					words[i] = strings.Trim(words[i], `"'`)
				}
				var cli commandLine
				if _, err := newParser(&cli, io.Discard, io.Discard).Parse(words); err != nil {
					t.Errorf("%s: est-server %s: %v", file, command, err)
				}
			}
		}
	}
	if commands < 40 {
		t.Errorf("only %d commands found", commands)
	}
}
