package proc_test

import (
	"context"
	"fmt"
	"log"

	"github.com/shmkit/shmkit/shm/proc"
)

var greet = proc.Define("greet", func(_ context.Context, whom string) error {
	fmt.Println("hello,", whom)
	return nil
})

func ExampleFunc_Run() {
	// main began with proc.Main, or is called by proc.Run.
	if err := greet.Run(context.Background(), "George"); err != nil {
		log.Fatal(err)
	}
	// Output: hello, George
}

func ExampleFunc_Start() {
	p, err := greet.Start(context.Background(), "Fred", proc.Name("greeter"))
	if err != nil {
		log.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		log.Fatal(err)
	}
	fmt.Println(p.ExitCode())
	// Output:
	// hello, Fred
	// 0 true
}
