package main

import "runtime/debug"

// releaseVersion is set by the linker for a release: -X main.releaseVersion=1.2.3.
var releaseVersion string

// version is that of the program, as the build recorded it.
func version() string {
	if releaseVersion != "" {
		return releaseVersion
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	revision, modified := "", ""
	for _, setting := range info.Settings {
		switch {
		case setting.Key == "vcs.revision":
			revision = " " + setting.Value[:min(12, len(setting.Value))]
		case setting.Key == "vcs.modified" && setting.Value == "true":
			modified = ", modified"
		}
	}
	return "development build" + revision + modified
}
