// Package configs embeds the annotated sample configuration and the shipped certificate profiles in the binaries, so
// that `est-server init` needs no file beside it.
package configs

import (
	"embed"
	"io/fs"
)

// Server is the annotated configuration of the EST server, every value at its default.
//
//go:embed est-server.yaml
var Server []byte

//go:embed profiles/*.yaml
var profiles embed.FS

// Profiles returns the shipped certificate profiles by file name ("iot-device.yaml").
func Profiles() (map[string][]byte, error) {
	names, err := fs.Glob(profiles, "profiles/*.yaml")
	if err != nil {
		return nil, err
	}
	files := make(map[string][]byte, len(names))
	for _, name := range names {
		content, err := profiles.ReadFile(name)
		if err != nil {
			return nil, err
		}
		files[name[len("profiles/"):]] = content
	}
	return files, nil
}
