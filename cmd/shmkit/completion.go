package main

import (
	"strings"

	"github.com/spf13/cobra"
)

// addCompletion adds cobra's completion command, which is left to answer a shell that it does not
// know, or none, with its help and success; here both are usage errors.
func addCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() != "completion" {
			continue
		}
		var shells []string
		for _, shell := range cmd.Commands() {
			shells = append(shells, shell.Name())
			shell.Args = noArgs
		}
		cmd.Args = func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("completion for which shell? It knows %s", strings.Join(shells, ", "))
			}
			return usagef("no completion for %q; it knows %s", args[0], strings.Join(shells, ", "))
		}
		cmd.RunE = func(*cobra.Command, []string) error { return nil } // Args never lets it come to this
	}
}
